"""Old releases go; none that anything needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from runner.rollout import prune
from runner.rollout.release import archive_key, manifest_key
from runner.state import nodes, orders, rollouts
from runner.storage import Storage

NAMES = [f"r{i}" for i in range(9)]  # newest first


def test_the_newest_stay_and_what_is_used_and_what_ran_before_it() -> None:
    kept = prune.kept(NAMES, 2, {"r4": "2 nodes run it", "r6": "roll 1 is under way", "x": "?"}, {"r4": ["r8"]})
    assert kept == {
        "r0": "one of the newest 2",
        "r1": "one of the newest 2",
        "r4": "2 nodes run it",
        "r6": "roll 1 is under way",
        "r7": "ran before r6",  # nobody knows what did: the one published before it
        "r8": "ran before r4",
    }


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.dictionaries(st.sampled_from(NAMES), st.just("used")),
    st.dictionaries(st.sampled_from(NAMES), st.sets(st.sampled_from(NAMES))),
)
def test_nothing_in_use_ever_goes(keep: int, used: dict[str, str], before: dict[str, set[str]]) -> None:
    kept = prune.kept(NAMES, keep, used, before)
    assert set(NAMES[:keep]) | used.keys() <= kept.keys()
    assert all(before.get(r, set()) <= kept.keys() for r in used)
    allowed = set(NAMES[:keep]) | used.keys()
    allowed |= {e for r in used for e in (before.get(r) or NAMES[NAMES.index(r) + 1 :][:1])}
    assert kept.keys() == allowed


def test_what_the_database_says_is_in_use(engine: Engine) -> None:
    with engine.begin() as c:
        for node, release in (("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "gone")):
            nodes.register(c, nodes.NodeInfo(node, "worker", "default", release, "boot", slots=1, queues=("default",)))
        c.execute(text("UPDATE node SET state = 'gone' WHERE node_id = 'n4'"))
        orders.give(c, "n3", "c", reason="r", by="me", drain_seconds=1)
        for pool, state in (("p", "running"), ("q", "failed")):
            roll = rollouts.create(
                c,
                role="worker",
                pool=pool,
                release=f"new-{pool}",
                strategy="replace",
                wish={"before": f"old-{pool}"},
                steps=[("tag", {"before": f"tag-{pool}"})],
                who="me",
            )
            if state == "failed":
                rollouts.finish(c, roll, state)
        used = prune.used(c, {"t": "the tag of g", "a": "the tag of g"})
    assert used == {
        "a": "2 nodes run it",
        "b": "1 node runs it",
        "c": "machine n3 is ordered to run it",
        "t": "the tag of g",
        **{r: "roll 1 is under way" for r in ("new-p", "old-p", "tag-p")},
    }


def test_what_ran_before_is_read_from_the_history(engine: Engine) -> None:
    with engine.begin() as c:
        for target, before, after in (
            ("worker/p", "a", "b"),
            ("worker/p", "b", "c"),
            ("worker/q", "a", "c"),
            ("worker/q", "c", "c"),
            ("worker/p", None, "d"),
        ):
            c.execute(
                text("INSERT INTO deploy (kind, target, before, after, who) VALUES ('release', :t, :b, :a, 'me')"),
                {"t": target, "b": before, "a": after},
            )
        assert prune.before(c) == {"b": {"a"}, "c": {"a", "b"}}


def test_a_release_that_goes_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    storage = Storage.open(f"file://{tmp_path}/artifacts")
    with engine.begin() as c:
        for release in ("a", "b"):
            storage.put(archive_key(release), b"x")
            storage.put(manifest_key(release), b"{}")
            rollouts.add_release(c, release=release, label="", git_commit="", url="x", size=1, who="me")
        prune.remove("a", storage, c)
    with engine.begin() as c:
        assert [r.id for r in rollouts.releases(c)] == ["b"]
        prune.remove("a", storage, c)  # a second time is fine
    assert [o.key for o in storage.list()] == [manifest_key("b"), archive_key("b")]


@pytest.mark.parametrize("other", ["rollout", "node_order"])
def test_no_roll_begins_meanwhile(engine: Engine, other: str) -> None:
    with engine.begin() as c, engine.begin() as second:
        prune.hold(c)
        second.execute(text("SET LOCAL lock_timeout = '50ms'"))
        with pytest.raises(Exception, match="lock timeout"):
            second.execute(text(f"LOCK TABLE {other} IN ROW EXCLUSIVE MODE"))
