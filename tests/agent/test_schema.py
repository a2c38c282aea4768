"""The first nodes of an environment, whose database is empty."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from runner.agent.decide import Act
from runner.agent.main import Agent
from runner.localcloud.engines import Postgres
from runner.rollout import published
from runner.rollout import release as releases
from runner.settings import Settings
from runner.state import db, migrate, rollouts
from runner.state.db import connect
from runner.storage import Storage
from tests.rollout import tiny


def agent(role: str, engine: Engine, home: Path, release: str) -> Agent:
    settings = Settings(
        role=role, node_id=f"{role}-1", home=home, release=release, artifacts_url=f"file://{home}/artifacts"
    )  # type: ignore[arg-type]
    return Agent(settings, engine)


def test_the_first_scheduler_creates_the_schema_and_writes_its_release_down(postgres: Postgres, tmp_path: Path) -> None:
    # Given an empty database, and a release that was uploaded
    engine = connect(postgres.create_database(f"empty_{tmp_path.name}"))
    built = releases.build(tiny.tree(tmp_path / "source"), "first", tmp_path / "out")
    published.upload(built, Storage.open(f"file://{tmp_path}/artifacts"))
    nodes = {role: agent(role, engine, tmp_path, built.id) for role in ("worker", "web", "scheduler")}
    try:
        # When its nodes come up, then those that are no schedulers wait
        for role in ("worker", "web"):
            assert [acts for _, acts in nodes[role].turn()] == [[]]
        with engine.connect() as connection:
            assert db.empty(connection)
        # And the scheduler creates the schema
        assert [acts for _, acts in nodes["scheduler"].turn()] == [[Act.CREATE_SCHEMA]]
        with engine.connect() as connection:
            assert migrate.pending(connection) == []
            (found,) = rollouts.releases(connection)
        assert (found.id, found.label, found.created_by) == (built.id, "first", "scheduler-1")
        assert found.size == built.path.stat().st_size
    finally:
        engine.dispose()


def test_a_schema_that_is_there_is_left_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        assert not migrate.create(connection)


@pytest.mark.parametrize("release", ["dev", "0bad0bad0bad"])
def test_a_release_that_was_never_uploaded_is_not_written_down(engine: Engine, tmp_path: Path, release: str) -> None:
    with engine.begin() as connection:
        assert not published.announce(release, Storage.open(f"file://{tmp_path}/artifacts"), connection, "t")
        assert rollouts.releases(connection) == []
