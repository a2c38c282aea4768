"""Plans as data."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.rollout.facts import Facts, Group, Instance, NodeFact, Schema
from runner.rollout.plan import Step, Wish, batch_size, plan
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
        Step("surge", {"batch": 1, "group": "g", "count": 1, "leaving": ["i-1"]}),
        Step("wait_ready", {"batch": 1, **gate, "limit_seconds": 60}),
        Step("heartbeat", {"batch": 1, **gate, "limit_seconds": 30}),
        Step("bake", {"batch": 1, **gate, **no_more}),
        Step("drain", {"batch": 1, "group": "g", "instances": ["i-1"], "seconds": 90}),
        Step("terminate", {"batch": 1, "group": "g", "instances": ["i-1"]}),
        Step("surge", {"batch": 2, "group": "g", "count": 1, "leaving": ["i-2"]}),
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


def shape(steps: list[Step]) -> list[tuple[str, object]]:
    """What each step does, to how many or to whom."""
    return [(s.action, s.args.get("instances", s.args.get("count", s.args.get("phase", "")))) for s in steps]


def test_a_canary_is_the_first_batch_and_bakes() -> None:
    wish = Wish("new", batch="50%", canary=1, bake_seconds=90, gate_commands=("true",))
    steps = plan(facts(*["old"] * 5), wish)
    assert [s.args["count"] for s in steps if s.action == "surge"] == [1, 2, 2]
    assert [s.args["seconds"] for s in steps if s.action == "bake"] == [90, 0, 0]
    assert all(s.args["commands"] == ["true"] for s in steps if s.action == "bake")


@pytest.mark.parametrize(
    ("batch", "nodes", "size"), [("25%", 8, 2), ("25%", 3, 1), ("100%", 7, 7), (3, 9, 3), ("3", 9, 3)]
)
def test_a_batch_is_a_count_or_a_share(batch: int | str, nodes: int, size: int) -> None:
    assert batch_size(batch, nodes) == size


@pytest.mark.parametrize("batch", ["0%", "101%", "-1", "x", "", "1.5"])
def test_a_batch_that_is_neither(batch: str) -> None:
    with pytest.raises(UsageError):
        batch_size(batch, 4)


def test_without_a_surge_old_nodes_go_before_new_ones_prove_themselves() -> None:
    assert shape(plan(facts("old", "old", maximum=2), Wish("new", surge=0)))[1:7] == [
        ("surge", 0),
        ("drain", ["i-1"]),
        ("terminate", ["i-1"]),
        ("wait_ready", 1),
        ("heartbeat", 1),
        ("bake", 1),
    ]


def test_a_small_surge_proves_itself_before_a_large_batch_goes() -> None:
    assert shape(plan(facts(*["old"] * 3, maximum=4), Wish("new", batch=3, surge=1)))[1:] == [
        ("surge", 1),
        ("wait_ready", 1),
        ("heartbeat", 1),
        ("bake", 1),
        ("drain", ["i-1", "i-2", "i-3"]),
        ("terminate", ["i-1", "i-2", "i-3"]),
        ("wait_ready", 3),
        ("heartbeat", 3),
        ("bake", 3),
    ]


def test_schedulers_have_no_queue_and_web_nodes_drain_once_nobody_is_sent_to_them() -> None:
    scheduler = replace(facts("old"), role="scheduler", pool="scheduler")
    assert [a for a, _ in shape(plan(scheduler, Wish("new")))] == ["tag", "surge", "wait_ready", "drain", "terminate"]
    web = replace(facts("old"), role="web", pool="web")
    assert [a for a, _ in shape(plan(web, Wish("new", bake_seconds=5)))] == [
        "tag",
        "surge",
        "wait_ready",
        "bake",
        "terminate",
    ]


def test_in_place_tells_nodes_and_replaces_none() -> None:
    steps = plan(facts("old", "old", "new", maximum=3), Wish("new", strategy="in-place", batch=2))
    assert shape(steps) == [
        ("tag", ""),
        ("order", ["i-1", "i-2"]),
        ("wait_ready", ["i-1", "i-2"]),
        ("heartbeat", ["i-1", "i-2"]),
        ("bake", ["i-1", "i-2"]),
        ("relieve", ["i-1", "i-2"]),
    ]


def test_migrations_come_before_the_first_and_after_the_last() -> None:
    steps = plan(replace(facts("old"), schema=Schema(("pre_2",), ("post_2",))), Wish("new"))
    assert shape(steps)[0] == ("schema", "pre") and shape(steps)[-1] == ("schema", "post")
    assert plan(replace(facts("new", tag="new"), schema=Schema(("pre_2",))), Wish("new")) == []


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (Schema(ahead=("post_9",)), "older than the schema.*post_9"),
        (Schema(pre=("pre_9",), blocked=("post_9",)), "needs post_9 first, which the running release old cannot"),
    ],
)
def test_a_schema_that_does_not_go_with_the_release_is_refused(schema: Schema, says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        plan(replace(facts("old"), schema=schema), Wish("new"))


def test_a_pool_without_a_healthy_node_is_refused_unless_forced() -> None:
    silent = facts("old", "old")
    silent = replace(silent, nodes=tuple(replace(n, fresh=False) for n in silent.nodes))
    with pytest.raises(RefusedError, match="none of the 2 nodes of g is healthy"):
        plan(silent, Wish("new"))
    assert plan(silent, Wish("new", force=True))


def test_another_template_is_a_reason_to_roll_and_goes_back_with_the_tag() -> None:
    members = (Instance("i-1", "InService", "new", "3"), Instance("i-2", "InService", "new", "4"))
    nodes = tuple(NodeFact(m.instance_id, m.instance_id, "ready", "new") for m in members)
    found = Facts("worker", "default", Group("g", 2, 0, 9, "new", members, "4"), nodes)
    assert found.outdated("new") == ["i-1"]
    assert plan(found, Wish("new", strategy="in-place")) == []  # new software does not change a machine
    old = replace(found, group=replace(found.group, release="old"))
    tag = plan(old, Wish("new"))[0]
    assert tag.args["template_before"] == "3"
    assert way_back([(tag, {})], None, failed=True, drain_seconds=1)[0].args["template"] == "3"
    assert "template" not in way_back([(tag, {})], None, failed=False, drain_seconds=1)[0].args


def test_what_a_pool_ran_before() -> None:
    assert facts("old", "old").before("new") == "old"
    assert facts("older", "new", "older", "old", tag="new").before("new") == "older"
    assert facts("new", tag="new").before("new") == ""
