"""Engines and processes to measure: a temporary directory, a fresh database a fleet, the processes of production."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

from runner import bundle
from runner.localcloud import process
from runner.localcloud.engines import Postgres, Valkey
from runner.settings import SluiceError
from runner.state import migrate, transitions
from runner.state.db import connect
from runner.storage import Storage
from tests.bench.measure import cpu_seconds
from tests.bench.yardstick import Yardstick

ROOT = Path(__file__).parents[2]
PIPELINES = Path(__file__).parent / "pipelines"
ROLES = ("scheduler", "worker", "web")
STOP_SECONDS = 5.0
RUN_SECONDS = 300.0


class Engines:
    """PostgreSQL and Valkey with the settings of `runner dev`: commits are on disk before they count."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.postgres = Postgres(directory / "postgres")
        self.valkey = Valkey(directory / "valkey")
        self.names = (f"bench{i}" for i in itertools.count())

    def start(self) -> None:
        self.postgres.start()
        self.valkey.start()

    def stop(self) -> None:
        self.valkey.stop()
        self.postgres.stop()

    def kill_processes(self) -> None:
        """Kill what fleets have started, and what that has started."""
        process.kill_tree(None, f"BENCH_DIR={self.directory}")

    def pids(self) -> dict[str, int]:
        """The root process of each engine."""
        found = {"database": process.read(self.postgres.pidfile), "broker": process.read(self.valkey.pidfile)}
        return {name: ref.pid for name, ref in found.items() if ref}


@contextlib.contextmanager
def engines() -> Iterator[Engines]:
    """Engines in a temporary directory; both are gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    made = Engines(directory)
    try:
        made.start()
        yield made
    finally:
        made.kill_processes()  # of a fleet whose own end was interrupted
        made.stop()
        shutil.rmtree(directory, ignore_errors=True)


class Fleet:
    """A scheduler, a worker and the pages on a fresh database, and bare Celery beside them where it is asked for."""

    def __init__(self, engines: Engines, *, slots: int) -> None:
        import redis

        self.engines = engines
        self.slots = slots
        self.name = next(engines.names)
        self.directory = engines.directory / self.name
        self.directory.mkdir()
        self.url = engines.postgres.create_database(self.name)
        migrate.upgrade(self.url)
        with contextlib.closing(redis.Redis.from_url(engines.valkey.url)) as broker:
            broker.flushall()
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLUICE_", "AWS_", "BENCH_"))},
            "BENCH_DIR": str(engines.directory),
            "SLUICE_ENV": "dev",
            "SLUICE_DATABASE_URL": self.url,
            "SLUICE_BROKER_URL": engines.valkey.url,
            "SLUICE_ARTIFACTS_URL": f"file://{self.directory}/artifacts",
            "SLUICE_STORAGE_URL": f"file://{self.directory}/storage",
            "SLUICE_SLOTS": str(slots),
            "SLUICE_WEB_PORT": "0",
        }
        self.engine = connect(self.url, application_name="bench")
        self.database = psycopg.connect(self.url, autocommit=True)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    # --- processes

    def start(self) -> None:
        """Start the processes and wait until all of them heartbeat."""
        for role in ROLES:
            own = {
                "SLUICE_ROLE": role,
                "SLUICE_NODE_ID": f"bench-{role}",
                "SLUICE_HOME": str(self.directory / role),
            }
            self._spawn(role, [*command("runner"), role], own)
        self.wait(
            lambda: self.one("SELECT count(*) FROM node JOIN node_heartbeat USING (node_id) WHERE state = 'ready'"),
            len(ROLES),
            "the processes to be ready",
        )

    def yardstick(self) -> Yardstick:
        """A bare Celery worker with as many slots, and the means to give it tasks."""
        url = self.engines.valkey.url.removesuffix("/0") + "/1"
        counter = self.directory / "counter"
        made = Yardstick(url, counter)
        argv = [sys.executable, "-m", "celery", "-A", "tests.bench.yardstick", "worker"]
        own = {"BENCH_BROKER_URL": url, "BENCH_COUNTER": str(counter)}
        self._spawn("celery", [*argv, "--pool", "prefork", "-c", str(self.slots), "-l", "warning"], own)
        made.fan(2 * self.slots)
        return made

    def _spawn(self, name: str, argv: list[str], environment: dict[str, str]) -> None:
        with self._log(name).open("ab") as output:
            self.processes[name] = subprocess.Popen(
                argv,
                env={**self.environment, **environment},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def close(self) -> None:
        """End the processes, whatever they are doing, and drop the database."""
        for child in self.processes.values():
            child.terminate()
        end = time.monotonic() + STOP_SECONDS
        for child in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, end - time.monotonic()))
        self.engines.kill_processes()
        for child in self.processes.values():
            child.wait()
        self.database.close()
        self.engine.dispose()
        with psycopg.connect(self.engines.postgres.url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{self.name}" WITH (FORCE)')
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- work

    def publish(self, directory: Path) -> None:
        """Make a folder of pipelines active."""
        storage = Storage.open(self.environment["SLUICE_ARTIFACTS_URL"])
        with self.engine.begin() as connection:
            bundle.publish(directory, storage=storage, connection=connection, who="bench")

    def run(self, dag_id: str, *, runs: int = 1, look_seconds: float = 0.001) -> float:
        """Seconds from before the first run is created until another connection sees that the last one succeeded."""
        first = dt.datetime.now(dt.UTC)
        before = self.one("SELECT coalesce(max(id), 0) FROM dag_run")
        start = time.perf_counter()
        for i in range(runs):
            with self.engine.begin() as connection:
                transitions.create_run(connection, dag_id, first + dt.timedelta(microseconds=i))
        # The index of running runs: looking costs the database nothing that grows.
        self.wait(
            lambda: self.one("SELECT count(*) FROM dag_run WHERE state = 'running'"),
            0,
            f"{runs} runs of {dag_id} to end",
            look_seconds=look_seconds,
        )
        took = time.perf_counter() - start
        bad = self.one("SELECT count(*) FROM dag_run WHERE id > %s AND state <> 'success'", before)
        if bad:
            raise SluiceError(f"{bad} of {runs} runs of {dag_id} failed", self._tails())
        return took

    def one(self, sql: str, *values: Any) -> Any:
        """The first column of the first row."""
        row = self.database.execute(sql, values).fetchone()
        return row[0] if row else None

    def wait(
        self,
        what: Callable[[], Any],
        wanted: Any,
        meaning: str,
        *,
        look_seconds: float = 0.02,
        most: float = RUN_SECONDS,
    ) -> None:
        """Until `what()` is `wanted`. Raises SluiceError after `most` seconds, or if a process has ended."""
        end = time.monotonic() + most
        while what() != wanted:
            dead = [name for name, child in self.processes.items() if child.poll() is not None]
            if dead or time.monotonic() > end:
                why = f"{dead[0]} has exited" if dead else f"waited {most:g} s in vain"
                raise SluiceError(f"{why} while waiting for {meaning}", self._tails())
            time.sleep(look_seconds)

    def _tails(self) -> str:
        return "\n".join(f"{n}: {self._log(n).read_text(errors='replace')[-600:]}" for n in self.processes)

    # --- accounting

    def pids(self) -> dict[str, int]:
        """The root process of each of ours, without the yardstick."""
        return {name: child.pid for name, child in self.processes.items() if name in ROLES}

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far of each of our processes and of each engine, their descendants included."""
        return {name: cpu_seconds([pid]) for name, pid in {**self.pids(), **self.engines.pids()}.items()}


def command(name: str) -> list[str]:
    """An installed command of this virtual environment."""
    return [str(Path(sys.executable).with_name(name))]
