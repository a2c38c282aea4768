"""The real PostgreSQL and the real Valkey, from wheels."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import kombu
import psycopg
import pytest
import sqlalchemy

from runner.localcloud import engines, process
from runner.localcloud.engines import Postgres, Valkey
from runner.settings import SluiceError


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="sluice-test-", ignore_cleanup_errors=True) as home:
        engine = Postgres(Path(home), fast=True)
        yield engine
        engine.stop()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    engine = Valkey(tmp_path)
    yield engine
    engine.stop()


def test_postgres_starts_serves_every_client_and_is_found_again(postgres: Postgres) -> None:
    # Given a directory in which nothing has been yet; when it starts, it takes two seconds at most
    began = time.monotonic()
    url = postgres.start()
    assert time.monotonic() - began < 4  # measured 0.7 s; a busy machine may take longer
    # Then another starter finds the same server
    pid = process.read(postgres.pidfile)
    assert Postgres(postgres.directory, fast=True).start() == url
    assert process.read(postgres.pidfile) == pid
    # And psycopg and SQLAlchemy both take the URL, of any database
    warehouse = postgres.create_database("ware house")
    assert postgres.create_database("ware house") == warehouse
    with psycopg.connect(warehouse) as connection:
        assert connection.execute("SELECT current_database(), current_setting('max_connections')").fetchone() == (
            "ware house",
            "200",
        )
        assert connection.info.server_version // 10000 == 18
    engine = sqlalchemy.create_engine(warehouse.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as other:
        assert other.execute(sqlalchemy.text("SELECT 1")).scalar() == 1
    engine.dispose()


def test_what_was_committed_is_there_after_the_server_was_killed(postgres: Postgres) -> None:
    url = postgres.start()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("INSERT INTO kept VALUES (42)")
    # When the server is killed and started again
    server = process.read(postgres.pidfile)
    assert server is not None
    process.kill_tree(server.pid)
    assert postgres.start() == url
    # Then nothing is lost
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (42,)


def test_the_users_own_postgres_settings_do_not_reach_it(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGHOST", "nowhere.invalid")
    monkeypatch.setenv("PGDATA", "/nowhere")
    psycopg.connect(postgres.start()).close()


def test_a_pid_that_went_to_another_program_does_not_stop_postgres_from_starting(home: Path) -> None:
    # Given a server that died with its machine, and another program under its old pid now
    engine = Postgres(home, fast=True)
    engine.start()
    server = process.read(engine.pidfile)
    assert server is not None
    process.kill_tree(server.pid)
    stranger_file = home / "stranger.pid"
    user = engines._unprivileged()  # of the same user, else PostgreSQL can tell by itself
    stranger = process.start(["sleep", "600"], os.environ, home / "stranger.log", stranger_file, user=user)
    lock = engine.data / "postmaster.pid"
    lock.write_text(lock.read_text().replace(str(server.pid), str(stranger.pid), 1))
    # When it is started, then it comes up and leaves the other alone
    try:
        psycopg.connect(engine.start()).close()
        assert stranger.alive()
    finally:
        engine.stop()
        process.stop(stranger_file, grace=0)


def test_a_path_too_long_for_a_socket_works(home: Path) -> None:
    engine = Postgres(home / ("long" * 30), fast=True)
    try:
        psycopg.connect(engine.start()).close()
        assert engine.start() == Postgres(engine.directory).url
    finally:
        engine.stop()


def test_a_broken_data_directory_is_one_clear_line(home: Path) -> None:
    engine = Postgres(home, fast=True)
    engine.data.mkdir()
    (engine.data / "PG_VERSION").write_text("18\n")
    with pytest.raises(SluiceError, match="PostgreSQL did not start"):
        engine.start()
    assert not process.alive(engine.pidfile)


def test_valkey_carries_celerys_messages_and_keeps_its_port(valkey: Valkey) -> None:
    # Given a running server
    url = valkey.start()
    assert url.startswith("redis://127.0.0.1:")
    assert valkey.start() == url
    # Then kombu, which is what Celery speaks through, can send and receive
    with kombu.Connection(url) as connection:
        queue = connection.SimpleQueue("test")
        queue.put({"hello": 1})
        message = queue.get(timeout=2)
        message.ack()
        assert message.payload == {"hello": 1}
        queue.put({"never": "read"})
        queue.close()
    # When it is killed and started again, it has the same address and an empty memory
    server = process.read(valkey.pidfile)
    assert server is not None
    server.signal(signal.SIGKILL)
    process.wait_gone(server, 2)
    assert valkey.start() == url
    with kombu.Connection(url) as connection:
        assert connection.default_channel.client.dbsize() == 0
