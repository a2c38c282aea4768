"""Mapped tasks: how many items they become, what each item gets, what it means downstream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runner.state import transitions
from runner.state.transitions import Claim
from runner.state.transitions.records import REFERENCE
from runner.state.transitions.take import indexes

from .conftest import World, task


def mapped(task_id: str, *over: Any, upstream: tuple[str, ...] = (), **options: Any) -> Any:
    """Over task ids and lengths; the arguments are called a, b, …"""
    entries = tuple(
        {"arg": arg, "task" if isinstance(o, str) else "length": o} for arg, o in zip("abc", over, strict=False)
    )
    sources = tuple(o for o in over if isinstance(o, str))
    return task(task_id, *sources, *upstream, kind="mapped", map_over=entries, **options)


def take(world: World, n: int = 100) -> list[Claim]:
    return list(world.do(lambda c: transitions.take(c, node_id="n1", queues=["default"], n=n, lease_seconds=300)))


def test_all_combinations_are_in_order_and_the_last_list_runs_fastest() -> None:
    assert [indexes(i, [2, 3]) for i in range(6)] == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert indexes(4, [5]) == [4]


def test_each_item_gets_its_element(world: World) -> None:
    # Given a task mapped over a list of the pipeline's text, and over what a task returned
    world.dag(task("list"), mapped("load", 2, "list"), task("report", "load", inputs=("load",)))
    world.node()
    run = world.run()
    (source,) = take(world)
    world.end(source, value='["x", {"y": 1}, null]')
    # Then there is one for each combination
    items = take(world)
    assert [c.items for c in items] == [
        {"a": {"index": i}, "b": {"value": v}} for i in range(2) for v in ("x", {"y": 1}, None)
    ]
    assert [c.map_index for c in items] == list(range(6))
    # And what they return is one list downstream, with a gap for what returned nothing
    for claim in items:
        world.end(claim, value=None if claim.map_index == 3 else str(claim.map_index * 10))
    (report,) = take(world)
    assert report.inputs == {"load": [0, 10, 20, None, 40, 50]}
    world.end(report)
    assert world.run_state(run) == "success"


def test_over_what_a_mapped_task_returned_and_over_references(world: World) -> None:
    world.dag(task("list"), mapped("load", "list"), mapped("again", "load"))
    world.node()
    world.run()
    (source,) = take(world)
    # Given a list that is in storage
    world.end(source, url="values/list.json", length=2)
    first, second = take(world)
    assert first.items == {"a": {"value": {REFERENCE: "values/list.json", "index": 0}}}
    assert second.items == {"a": {"value": {REFERENCE: "values/list.json", "index": 1}}}
    # And items of which one returns a reference
    world.end(first, value="7")
    world.end(second, url="values/second.json")
    assert [c.items for c in take(world)] == [
        {"a": {"value": 7}},
        {"a": {"value": {REFERENCE: "values/second.json"}}},
    ]


@pytest.mark.parametrize(
    ("ends", "becomes", "after"),
    [
        (["success", "skipped"], "success", "ready"),
        (["skipped", "skipped"], "skipped", "skipped"),
        (["success", "failed"], "failed", "upstream_failed"),
    ],
)
def test_a_mapped_task_becomes_what_its_items_have_become(
    world: World, ends: list[str], becomes: str, after: str
) -> None:
    world.dag(mapped("load", 2), task("report", "load"))
    world.node()
    run = world.run()
    for claim, end in zip(take(world), ends, strict=True):
        assert world.states(run)["report"] == "waiting"
        world.end(claim, end)
    assert world.one("SELECT state FROM task_instance WHERE task_id = 'load' AND map_index = -1") == becomes
    assert world.states(run)["report"] == after
    if becomes == "failed":
        assert world.one("SELECT error FROM task_instance WHERE task_id = 'load' AND map_index = -1") == (
            "1 of 2 items failed"
        )


@pytest.mark.parametrize(
    ("returned", "state", "why"),
    [
        ({"value": "[]"}, "skipped", "nothing to map over"),
        ({"value": '{"a": 1}'}, "failed", "cannot map over what task 'list' returned: it is no list"),
        ({}, "failed", "cannot map over what task 'list' returned: it is no list"),
        ({"url": "values/dict.json"}, "failed", "cannot map over what task 'list' returned: it is no list"),
        (
            {"url": "values/l.json", "length": 100_001},
            "failed",
            "would map over 100,001 items; at most 100,000 are allowed",
        ),
    ],
)
def test_what_cannot_be_mapped_over_says_why(world: World, returned: Any, state: str, why: str) -> None:
    world.dag(task("list"), mapped("load", "list"), task("report", "load", trigger_rule="all_done"))
    world.node()
    run = world.run()
    (source,) = take(world)
    world.end(source, **returned)
    assert world.states(run) == {"list": "success", "load": state, "report": "ready"}
    assert world.one("SELECT error FROM task_instance WHERE task_id = 'load'") == why


def test_a_run_of_nothing_but_nothing_is_over_at_once(world: World) -> None:
    world.dag(mapped("load", 0), task("report", "load"))
    run = world.run()
    assert world.states(run) == {"load": "skipped", "report": "skipped"}
    assert world.run_state(run) == "success"


def test_items_have_tries_of_their_own(world: World) -> None:
    world.dag(mapped("load", 2, retries=1, retry_delay_seconds=0.0))
    world.node()
    run = world.run()
    first, second = take(world)
    world.end(first, "failed")
    world.end(second)
    (again,) = take(world)
    assert (again.map_index, again.try_number) == (0, 2)
    world.end(again)
    assert world.run_state(run) == "success"


def test_ten_thousand_items(world: World) -> None:
    world.dag(task("list"), mapped("load", "list"), task("report", "load", inputs=("load",)))
    world.node()
    run = world.run()
    (source,) = take(world)
    world.end(source, value=json.dumps(list(range(10_000))))
    seen = 0
    while claims := take(world, 2_500):
        if claims[0].task_id == "report":
            break
        assert [c.items["a"]["value"] for c in claims] == [c.map_index for c in claims]
        seen += len(claims)
        outcomes = [transitions.Outcome(c.task_instance, c.token, "success", value=str(c.map_index)) for c in claims]
        world.do(lambda c, o=outcomes: transitions.finish(c, o))
    assert seen == 10_000
    (report,) = claims
    assert report.inputs == {"load": list(range(10_000))}
    world.end(report)
    assert world.run_state(run) == "success"
