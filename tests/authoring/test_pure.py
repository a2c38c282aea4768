"""The pure parts: graph questions, trigger rules, what fits into JSON."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.authoring import ReturnValueError
from runner.authoring.graph import find_cycle, topological_order
from runner.authoring.rules import TRIGGER_RULES, decide
from runner.authoring.values import check_return_value

graphs = st.integers(1, 8).flatmap(
    lambda n: st.lists(st.sets(st.integers(0, n - 1), max_size=3), min_size=n, max_size=n).map(
        lambda sets: {str(i): sorted(map(str, s)) for i, s in enumerate(sets)}
    )
)


@given(graphs)
def test_a_graph_has_an_order_or_a_cycle_and_never_both(upstream: dict[str, list[str]]) -> None:
    cycle = find_cycle(upstream)
    order = topological_order(upstream)
    if cycle is None:
        # every task once, after all it needs
        assert sorted(order) == sorted(upstream)
        assert all(order.index(b) < order.index(t) for t in upstream for b in upstream[t])
    else:
        # a real way round, in the direction of the work
        assert cycle[0] == cycle[-1] and len(set(cycle)) == len(cycle) - 1
        assert all(before in upstream[after] for before, after in pairwise(cycle))
        assert len(order) < len(upstream)


def test_a_chain_longer_than_the_recursion_limit() -> None:
    chain = {str(i): [str(i + 1)] for i in range(20_000)} | {"20000": list[str]()}
    assert find_cycle(chain) is None
    chain["20000"] = ["0"]
    cycle = find_cycle(chain)
    assert cycle is not None and len(cycle) == 20_002


counts = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))


@given(st.sampled_from(TRIGGER_RULES), counts)
def test_a_rule_is_always_decided_in_the_end_and_never_changes_its_mind(
    rule: str, c: tuple[int, int, int, int]
) -> None:
    success, failed, skipped, pending = c
    total = success + failed + skipped + pending
    now = decide(rule, total=total, success=success, failed=failed, skipped=skipped)
    if pending == 0:
        assert now != "wait"
    elif now != "wait":
        for more in ({"success": success + 1}, {"failed": failed + 1}, {"skipped": skipped + 1}):
            later = {"success": success, "failed": failed, "skipped": skipped} | more
            assert decide(rule, total=total, **later) == now


@pytest.mark.parametrize(
    ("rule", "success", "failed", "skipped", "expected"),
    [
        ("all_success", 2, 0, 0, "run"),
        ("all_success", 1, 1, 0, "fail"),
        ("all_success", 1, 0, 1, "skip"),
        ("all_failed", 0, 2, 0, "run"),
        ("all_failed", 1, 1, 0, "skip"),
        ("all_done", 0, 1, 1, "run"),
        ("all_skipped", 0, 0, 2, "run"),
        ("all_skipped", 1, 0, 1, "skip"),
        ("one_success", 1, 1, 0, "run"),
        ("one_success", 0, 2, 0, "fail"),
        ("one_success", 0, 0, 2, "skip"),
        ("one_failed", 1, 1, 0, "run"),
        ("one_failed", 2, 0, 0, "skip"),
        ("one_done", 0, 1, 1, "run"),
        ("one_done", 0, 0, 2, "skip"),
        ("none_failed", 1, 0, 1, "run"),
        ("none_failed", 1, 1, 0, "fail"),
        ("none_skipped", 1, 1, 0, "run"),
        ("none_skipped", 1, 0, 1, "skip"),
        ("none_failed_min_one_success", 1, 0, 1, "run"),
        ("none_failed_min_one_success", 0, 0, 2, "skip"),
        ("none_failed_min_one_success", 1, 1, 0, "fail"),
        ("always", 0, 2, 0, "run"),
    ],
)
def test_each_rule(rule: str, success: int, failed: int, skipped: int, expected: str) -> None:
    assert decide(rule, total=2, success=success, failed=failed, skipped=skipped) == expected


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)


@given(json_values)
def test_what_json_can_hold_comes_back_as_it_is(value: Any) -> None:
    assert check_return_value("t", value) == value


def test_tuples_become_lists() -> None:
    assert check_return_value("t", ({"a": (1, 2)},)) == [{"a": [1, 2]}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "task 'load' returned a object"),
        ({"rows": [1, {2, 3}]}, r"a set at \['rows'\]\[1\]"),
        ({"a": json.JSONDecoder()}, r"a json.decoder.JSONDecoder at \['a'\]"),
        ([float("nan")], r"float nan at \[0\]"),
        ({1: "x"}, r"key 1 \(int\)"),
        ("a\x00b", "NUL"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_what_does_not_fit_names_the_task_the_part_and_the_type(value: Any, message: str) -> None:
    with pytest.raises(ReturnValueError, match=message):
        check_return_value("load", value)


def test_a_value_that_contains_itself() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ReturnValueError, match="contains itself"):
        check_return_value("t", value)
