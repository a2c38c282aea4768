"""A real worker process on real engines, and a bundle written for one test."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from runner import bundle
from runner.state import transitions
from runner.state.doorbell import Doorbell, celery_app
from runner.storage import Storage


class Fleet:
    """Workers on one database and one broker; there is no scheduler unless a test plays one."""

    def __init__(self, engine: Engine, database_url: str, broker_url: str, directory: Path) -> None:
        self.engine = engine
        self.directory = directory
        self.environment = {
            **os.environ,
            "SLUICE_DATABASE_URL": database_url,
            "SLUICE_BROKER_URL": broker_url,
            "SLUICE_ARTIFACTS_URL": f"file://{directory}/artifacts",
            "SLUICE_STORAGE_URL": f"file://{directory}/storage",
            "SLUICE_HEARTBEAT_SECONDS": "0.3",
            "SLUICE_LEASE_SECONDS": "3",
            "OUT": str(directory / "out"),
        }
        (directory / "out").mkdir()
        self.doorbell = Doorbell(celery_app(broker_url))
        self.processes: list[subprocess.Popen[bytes]] = []

    def push(self, source: str) -> None:
        folder = self.directory / "pipelines"
        folder.mkdir(exist_ok=True)
        (folder / "pipeline.py").write_text(textwrap.dedent(source))
        with self.engine.begin() as c:
            bundle.publish(
                folder, storage=Storage.open(self.environment["SLUICE_ARTIFACTS_URL"]), connection=c, who="test"
            )

    def worker(self, node_id: str = "n1", *, slots: int = 4, **settings: str) -> subprocess.Popen[bytes]:
        environment = {
            **self.environment,
            "SLUICE_NODE_ID": node_id,
            "SLUICE_SLOTS": str(slots),
            "SLUICE_HOME": str(self.directory / node_id),
            **{f"SLUICE_{k.upper()}": v for k, v in settings.items()},
        }
        with (self.directory / f"{node_id}.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "runner.cli", "worker"], env=environment, stdout=output, stderr=output
            )
        self.processes.append(process)
        return process

    def run(self, dag_id: str, **options: Any) -> int:
        with self.engine.begin() as c:
            run = transitions.create_run(c, dag_id, dt.datetime.now(dt.UTC), **options)
        assert run is not None
        self.dispatch()
        return run

    def dispatch(self) -> None:
        with self.engine.begin() as c:
            messages = transitions.dispatch(c)
        self.doorbell.ring(messages)

    def one(self, sql: str, **values: Any) -> Any:
        with self.engine.begin() as c:
            return c.execute(text(sql), values).scalar()

    def wait(self, what: Callable[[], Any], seconds: float = 20, *, dispatching: bool = False) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if dispatching:
                self.dispatch()
            found = what()
            if found:
                return found
            time.sleep(0.05)
        logs = "\n".join(f"{p.name}:\n{p.read_text()[-3000:]}" for p in self.directory.glob("*.log"))
        raise AssertionError(f"not within {seconds} s\n{logs}")

    def ready(self, node_id: str = "n1") -> None:
        self.wait(lambda: self.one("SELECT state FROM node WHERE node_id = :n", n=node_id) == "ready")

    def state(self, run: int) -> str:
        return str(self.one("SELECT state FROM dag_run WHERE id = :r", r=run))

    def task(self, run: int, task_id: str, column: str = "state") -> Any:
        return self.one(f"SELECT {column} FROM task_instance WHERE run_id = :r AND task_id = :t", r=run, t=task_id)

    def out(self, name: str) -> list[Any]:
        path = self.directory / "out" / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def close(self) -> None:
        for p in self.processes:
            if p.poll() is None:
                p.send_signal(signal.SIGCONT)
                p.kill()
            p.wait()
        self.doorbell.close()


@pytest.fixture
def fleet(engine: Engine, database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(engine, database_url, broker_url, tmp_path)
    yield fleet
    fleet.close()
