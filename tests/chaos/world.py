"""The engines of a lane: one PostgreSQL and one Valkey of its own, so that lanes break theirs side by side."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import redis

from runner import bundle, examples
from runner.localcloud import process
from runner.localcloud.engines import Postgres, Valkey
from runner.state import migrate
from runner.state.db import connect
from runner.storage import Storage

HERE = Path(__file__).parent
LEDGER = Path(examples.__file__).parent / "temperatures" / "ledger.py"

# A function that is not named with its schema is looked up along the search path, and PostgreSQL's own come first
# unless they are named later: in a database with this path the clock is wrong by `skew.clock.ahead`.
_SKEW = """
CREATE SCHEMA skew;
CREATE TABLE skew.clock (ahead interval NOT NULL);
INSERT INTO skew.clock VALUES ('0');
CREATE FUNCTION skew.now() RETURNS timestamptz LANGUAGE sql STABLE AS
    'SELECT pg_catalog.now() + ahead FROM skew.clock';
CREATE FUNCTION skew.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    'SELECT pg_catalog.clock_timestamp() + ahead FROM skew.clock';
"""


@dataclass
class Engines:
    """Found again by their directory from any process: the one that starts them need not be the one that uses them."""

    directory: Path
    postgres: Postgres = field(init=False)
    valkey: Valkey = field(init=False)

    def __post_init__(self) -> None:
        self.postgres = Postgres(self.directory / "pg", fast=True, max_connections=500)
        self.valkey = Valkey(self.directory / "valkey")

    def start(self) -> None:
        """Bring both up, with a database to copy in which the pipelines of the scenarios are published."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.postgres.start()
        template = self.postgres.create_database("template")
        migrate.upgrade(template)
        self.publish(self.pipelines("pipelines", self.directory), template)
        self.valkey.start()

    @staticmethod
    def pipelines(name: str, into: Path) -> Path:
        """A copy of one of this room's folders of pipelines, to be added to and published."""
        folder = into / name
        shutil.copytree(HERE / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(LEDGER, folder)
        return folder

    def publish(self, folder: Path, url: str) -> None:
        engine = connect(url)
        try:
            with engine.begin() as c:
                bundle.publish(folder, storage=Storage.open(self.artifacts), connection=c, who="chaos")
        finally:
            engine.dispose()

    @property
    def artifacts(self) -> str:
        """Where the bundles of all scenarios are."""
        return f"file://{self.directory}/artifacts"

    def database(self, name: str) -> str:
        """The URL of a new database with the newest schema."""
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template')  # type: ignore[arg-type]
        return self.postgres.url_of(name)

    def drop(self, name: str) -> None:
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')  # type: ignore[arg-type]

    def skew(self, name: str) -> None:
        """Give this database a clock of its own, for all who connect from now on."""
        with psycopg.connect(self.postgres.url_of(name), autocommit=True) as connection:
            connection.execute(_SKEW)
            connection.execute(
                f'ALTER DATABASE "{name}" SET search_path = skew, pg_catalog, public'  # type: ignore[arg-type]
            )

    def database_address(self) -> str:
        """The path of PostgreSQL's socket."""
        return parse_qs(urlsplit(self.postgres.url).query)["host"][0] + "/.s.PGSQL.5432"

    def broker_address(self) -> tuple[str, int]:
        parts = urlsplit(self.valkey.url)
        return str(parts.hostname), int(parts.port or 0)

    def flush(self) -> None:
        """Empty the broker."""
        with redis.Redis.from_url(self.valkey.url) as client:
            client.flushall()

    def kill_broker(self) -> None:
        server = process.read(self.valkey.pidfile)
        assert server is not None
        server.signal(signal.SIGKILL)
        process.wait_gone(server, 30)

    def crash_database(self) -> None:
        """End PostgreSQL as `pg_ctl stop -m immediate` does."""
        server = process.read(self.postgres.pidfile)
        assert server is not None
        server.signal(signal.SIGQUIT)
        process.wait_gone(server, 60)

    def close(self) -> None:
        self.valkey.stop()
        self.postgres.stop()
