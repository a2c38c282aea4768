"""Plans as data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.rollout.facts import Facts, Group, Instance, NodeFact
from runner.rollout.plan import Step, Wish, plan
from runner.rollout.retreat import way_back
from runner.settings import RefusedError, UsageError


def facts(*releases: str, tag: str = "old", desired: int | None = None, maximum: int = 10) -> Facts:
    members = tuple(Instance(f"i-{k}", "InService", r) for k, r in enumerate(releases, 1))
    nodes = tuple(NodeFact(m.instance_id, m.instance_id, "ready", m.release) for m in members)
    desired = len(members) if desired is None else desired
    return Facts("worker", "default", Group("g", desired, 0, maximum, tag, members), nodes)


def test_one_by_one() -> None:
    wish = Wish("new", ready_seconds=60, heartbeat_seconds=30, drain_seconds=90)
    gate = {"group": "g", "count": 1, "release": "new"}
    no_more = {"seconds": 0.0, "commands": [], "promql": []}
    assert plan(facts("old", "old"), wish) == [
        Step("tag", {"group": "g", "release": "new", "before": "old"}),
        Step("surge", {"batch": 1, "group": "g", "count": 1}),
        Step("wait_ready", {"batch": 1, **gate, "limit_seconds": 60}),
        Step("heartbeat", {"batch": 1, **gate, "limit_seconds": 30}),
        Step("bake", {"batch": 1, **gate, **no_more}),
        Step("drain", {"batch": 1, "group": "g", "instances": ["i-1"], "seconds": 90}),
        Step("terminate", {"batch": 1, "group": "g", "instances": ["i-1"]}),
        Step("surge", {"batch": 2, "group": "g", "count": 1}),
        Step("wait_ready", {"batch": 2, **gate, "limit_seconds": 60}),
        Step("heartbeat", {"batch": 2, **gate, "limit_seconds": 30}),
        Step("bake", {"batch": 2, **gate, **no_more}),
        Step("drain", {"batch": 2, "group": "g", "instances": ["i-2"], "seconds": 90}),
        Step("terminate", {"batch": 2, "group": "g", "instances": ["i-2"]}),
    ]


def test_nothing_differs_nothing_to_do() -> None:
    assert plan(facts("new", "new", tag="new"), Wish("new")) == []


def test_a_pool_at_zero_is_only_tagged() -> None:
    assert [s.action for s in plan(facts(), Wish("new"))] == ["tag"]


def test_what_is_new_already_is_left_alone() -> None:
    steps = plan(facts("new", "old", "new", tag="new"), Wish("new", batch=5))
    assert [s.action for s in steps] == ["surge", "wait_ready", "heartbeat", "bake", "drain", "terminate"]
    assert steps[-1].args["instances"] == ["i-2"] and steps[0].args["count"] == 1


def test_an_instance_that_has_not_registered_counts_by_its_tag() -> None:
    group = Group("g", 2, 0, 5, "new", (Instance("i-1", "Pending:Wait", "old"), Instance("i-2", "Pending:Wait", "new")))
    assert plan(Facts("worker", "default", group), Wish("new", force=True))[-1].args["instances"] == ["i-1"]


def test_an_instance_that_leaves_already_is_left_alone() -> None:
    group = Group("g", 0, 0, 5, "new", (Instance("i-1", "Terminating:Wait", "old"),))
    assert plan(Facts("worker", "default", group), Wish("new")) == []


def test_no_room_for_a_surge_is_refused_with_what_would_fit() -> None:
    with pytest.raises(RefusedError) as e:
        plan(facts("old", "old", maximum=3), Wish("new", batch=2))
    assert "2 of 3" in e.value.message and e.value.hint.startswith("--surge 1, --surge 0 (")
    with pytest.raises(RefusedError, match="no room"):
        plan(facts("old", "old", maximum=2), Wish("new"))


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError):
        plan(facts("old"), Wish("new", batch=0))


@given(st.lists(st.sampled_from(["old", "older", "new"]), max_size=9), st.integers(1, 10))
def test_every_outdated_instance_leaves_once_and_never_more_than_came(releases: list[str], batch: int) -> None:
    steps = plan(facts(*releases, maximum=99), Wish("new", batch=batch))
    leaving = [i for s in steps if s.action == "terminate" for i in s.args["instances"]]
    drained = [i for s in steps if s.action == "drain" for i in s.args["instances"]]
    assert leaving == drained == [f"i-{k}" for k, r in enumerate(releases, 1) if r != "new"]
    for s in steps:
        if s.action == "terminate":
            surge = next(x for x in steps if x.action == "surge" and x.args["batch"] == s.args["batch"])
            assert surge.args["count"] == len(s.args["instances"]) <= batch
    assert all(s.text() != s.action for s in steps)  # each can be said in words


def test_the_way_back_puts_the_tag_back_and_removes_the_surge() -> None:
    tag, surge, ready, *_ = plan(facts("old", "old"), Wish("new"))
    memory = {"before": ["i-1", "i-2"], "desired": 2, "target": 3}
    assert way_back([(tag, {}), (surge, memory)], (ready, {}), failed=True, drain_seconds=7) == [
        Step("tag", {"group": "g", "release": "old", "before": "new"}),
        Step("retreat", {"group": "g", "keep": ["i-1", "i-2"], "desired": 2, "old": [], "seconds": 7, "bad": "new"}),
    ]


def test_an_abort_after_a_finished_batch_asks_whether_the_new_release_stays() -> None:
    steps = plan(facts("old", "old"), Wish("new"))
    first = [(s, {"before": ["i-1", "i-2"], "desired": 2}) for s in steps[:7]]
    assert [s.action for s in way_back(first, None, failed=False, drain_seconds=7)] == ["untag"]
    assert [s.action for s in way_back(first, None, failed=True, drain_seconds=7)] == ["tag"]
