"""Real engines for all tests: one PostgreSQL and one Valkey for the session, a fresh migrated database a test."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from runner.localcloud.engines import Postgres, Valkey
from runner.state import migrate
from runner.state.db import connect

_names = itertools.count()

# A shell starts what goes on in its background deaf to INT, and so would be all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def engines_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sluice-test-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(engines_dir: Path) -> Iterator[Postgres]:
    server = Postgres(engines_dir / "pg", fast=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _template(postgres: Postgres) -> str:
    """A database with the newest schema: copying it takes a tenth of migrating anew."""
    migrate.upgrade(postgres.create_database("template"))
    return "template"


@pytest.fixture
def database_url(postgres: Postgres, _template: str) -> Iterator[str]:
    """A fresh database with the newest schema."""
    name = f"test_{next(_names)}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{_template}"')  # type: ignore[arg-type]
    yield postgres.url_of(name)
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[arg-type]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def _valkey(engines_dir: Path) -> Iterator[str]:
    server = Valkey(engines_dir / "valkey")
    yield server.start()
    server.stop()


@pytest.fixture
def broker_url(_valkey: str) -> Iterator[str]:
    """An empty broker."""
    import redis

    client = redis.Redis.from_url(_valkey)
    client.flushall()
    client.close()
    yield _valkey


@pytest.fixture(autouse=True)
def _no_stray_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own SLUICE_* and AWS variables must not reach a test; where Terraform's provider is may."""
    for name in list(os.environ):
        if name.startswith(("SLUICE_", "AWS_")) and name != "SLUICE_TF_MIRROR":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def aws_endpoint() -> Iterator[str]:
    """An S3 on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch, _no_stray_settings: None) -> str:
    """The environment of a process that uses it."""
    for name, value in {
        "AWS_ENDPOINT_URL": aws_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return aws_endpoint
