from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner.deployctl import stacks
from runner.settings import UsageError

TREE = Path(__file__).parents[2] / "terraform"


def test_data_and_everything_on_it_come_after_network() -> None:
    known = stacks.graph()
    assert stacks.levels(stacks.CORE, known) == [["network"], ["data"], ["control", "workers"]]
    assert stacks.levels(known, known)[3:] == [["monitoring", "replication"]]


def test_with_engines_elsewhere_nothing_waits_for_the_data_stack() -> None:
    known = stacks.graph(engines=True)
    assert stacks.levels(stacks.CORE, known) == [["network"], ["data", "control", "workers"]]


def test_destroying_goes_the_other_way() -> None:
    known = stacks.graph()
    assert stacks.levels(stacks.CORE, known, reverse=True) == [["control", "workers"], ["data"], ["network"]]


def test_the_order_among_chosen_stacks_holds_through_one_left_out() -> None:
    known = stacks.graph()
    assert stacks.levels(["workers", "network"], known) == [["network"], ["workers"]]


def test_none_chosen_means_those_of_the_environment_and_each_comes_once_in_building_order() -> None:
    known = stacks.graph()
    assert stacks.select([], known, stacks.CORE) == ["network", "data", "control", "workers"]
    assert set(stacks.select([], known)) == set(known)
    assert stacks.select(["workers", "network", "workers"], known) == ["network", "workers"]


def test_an_unknown_stack_names_those_there_are() -> None:
    with pytest.raises(UsageError) as e:
        stacks.select(["netwrok"], stacks.graph())
    assert "netwrok" in e.value.message
    assert e.value.hint == "the stacks are state, network, data, control, workers, monitoring, warehouse, replication"


def test_what_is_missing_is_neither_standing_nor_chosen() -> None:
    known = stacks.graph()
    assert stacks.missing(["workers"], [], known) == {"workers": ["network", "data"]}
    assert stacks.missing(["workers"], ["network"], known) == {"workers": ["data"]}
    assert stacks.missing(["data", "workers"], ["network"], known) == {}


def test_dependents_are_direct_and_indirect() -> None:
    assert stacks.dependents("network", stacks.graph())[:3] == ["data", "control", "workers"]
    assert stacks.dependents("data", stacks.graph(engines=True)) == ["monitoring", "warehouse", "replication"]
    assert stacks.dependents("workers", stacks.graph()) == []


@pytest.mark.parametrize("name", list(stacks.graph()))
def test_the_graph_says_what_the_code_reads(name: str) -> None:
    # Given the real stacks, the remote states each one reads are the stacks the graph says it stands on.
    source = TREE / "stacks" / name
    assert (source / "main.tf").is_file()
    read: set[str] = set()
    for path in source.glob("*.tf"):
        read |= set(re.findall(r'^data "terraform_remote_state" "(\w+)"', path.read_text(), re.MULTILINE))
    assert read == stacks.graph()[name]
