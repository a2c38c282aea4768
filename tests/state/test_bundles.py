"""The switch between versions of pipeline code, and its history."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine, text

from runner.authoring.spec import DagSpec, TaskSpec
from runner.settings import RefusedError, UsageError
from runner.state import bundles


def push(c: Connection, version: str, *dag_ids: str, name: str = "sales", schedule: str | None = None) -> None:
    specs = [DagSpec(dag_id=d, schedule=schedule, tasks=(TaskSpec(task_id="t"),)) for d in dag_ids]
    bundles.register_and_activate(
        c, version=version, name=name, url=f"file:///{version}", size=1, specs=specs, who="ana", sha256=version * 4
    )


def active(c: Connection) -> dict[str, str]:
    rows = c.execute(text("SELECT dag_id, bundle_version FROM dag WHERE active"))
    return {row.dag_id: row.bundle_version for row in rows}


def test_a_rollback_goes_back_one_push_at_a_time(engine: Engine) -> None:
    with engine.begin() as c:
        # Given three versions, of which the second brought a DAG and the third took one away
        push(c, "v1", "a", schedule="@daily")
        push(c, "v2", "a", "b")
        push(c, "v3", "b")
        assert active(c) == {"b": "v3"}
        # When it is rolled back, then DAGs and schedules are as they were; once more, once further
        assert bundles.rollback(c, "sales", who="bob") == ("v3", "v2")
        assert active(c) == {"a": "v2", "b": "v2"}
        assert bundles.rollback(c, "sales", who="bob") == ("v2", "v1")
        assert active(c) == {"a": "v1"}
        assert c.execute(text("SELECT schedule FROM dag WHERE dag_id = 'a'")).scalar() == "@daily"
        # And no further; but forward again, by name
        with pytest.raises(RefusedError, match="bundle sales has no version before v1"):
            bundles.rollback(c, "sales", who="bob")
        assert bundles.rollback(c, "sales", to="v3", who="bob") == ("v1", "v3")
        # Then the history tells all of it, newest first
        assert [(d.action, d.before, d.after, d.who) for d in bundles.history(c, "sales")] == [
            ("rollback", "v1", "v3", "bob"),
            ("rollback", "v2", "v1", "bob"),
            ("rollback", "v3", "v2", "bob"),
            ("push", "v2", "v3", "ana"),
            ("push", "v1", "v2", "ana"),
            ("push", None, "v1", "ana"),
        ]


def test_going_back_to_where_one_is_changes_nothing(engine: Engine) -> None:
    with engine.begin() as c:
        push(c, "v1", "a")
        assert bundles.rollback(c, "sales", to="v1", who="bob") == ("v1", "v1")
        assert len(bundles.history(c)) == 1


def test_what_cannot_be_gone_back_to(engine: Engine) -> None:
    with engine.begin() as c:
        with pytest.raises(UsageError, match="no bundle 'sales'"):
            bundles.rollback(c, "sales", who="bob")
        push(c, "v1", "a")
        push(c, "v2", "b")
        push(c, "w1", "a", name="other")  # which sales had given up
        with pytest.raises(UsageError, match="no bundle version 'v9'"):
            bundles.rollback(c, "sales", to="v9", who="bob")
        with pytest.raises(UsageError, match="w1 is a version of bundle other"):
            bundles.rollback(c, "sales", to="w1", who="bob")
        with pytest.raises(UsageError, match="DAG 'a' belongs to bundle 'other'"):
            bundles.rollback(c, "sales", who="bob")
        assert active(c) == {"a": "w1", "b": "v2"}


def test_a_version_is_found_by_its_beginning(engine: Engine) -> None:
    with engine.begin() as c:
        push(c, "abc1", "a")
        push(c, "abd2", "a")
        assert bundles.find(c, "abc").version == "abc1"
        assert bundles.find(c, "abd2").active
        with pytest.raises(UsageError, match="more than one"):
            bundles.find(c, "ab")
        with pytest.raises(UsageError, match="no bundle version"):
            bundles.find(c, "%")
        assert {(v.version, v.active, v.dags) for v in bundles.versions(c, "sales")} == {
            ("abc1", False, 1),
            ("abd2", True, 1),
        }
        assert [s.dag_id for s in bundles.specs(c, "abc1")] == ["a"]


def test_a_node_learns_what_was_deployed_since_it_last_looked(engine: Engine) -> None:
    with engine.begin() as c:
        push(c, "v1", "a")
        seen = bundles.history(c)[0].id
        assert bundles.deployed_since(c, seen) == []
        push(c, "v2", "a")
        bundles.rollback(c, "sales", who="bob")
        bundles.rollback(c, "sales", to="v2", who="bob")
        assert bundles.deployed_since(c, seen) == ["v2", "v1"]
