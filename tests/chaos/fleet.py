"""One scenario's world: a fresh database, an emptied broker, real `runner worker` and `runner scheduler` processes."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from runner.localcloud import process
from runner.state import nodes, transitions
from runner.state.db import connect
from runner.state.doorbell import Doorbell, celery_app

from . import proxy
from .world import HERE, Engines

STOP_SECONDS = 60.0


class TimeUp(Exception):
    """The scenario's time is over before what it waits for has happened."""


class Inconclusive(Exception):
    """The harm that the scenario is about did not come about, so that everything went well says nothing."""


@dataclass
class Service:
    """One `runner` process, and whether it may have ended."""

    role: str
    node_id: str
    options: dict[str, Any]
    popen: subprocess.Popen[bytes]
    registrations: int  # of this node before this start
    ending: bool = False

    def alive(self) -> bool:
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal; KILL and TERM also say that its end is expected."""
        self.ending = self.ending or number in (signal.SIGKILL, signal.SIGTERM)
        if self.alive():
            self.popen.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.popen.wait()


class Link:
    """The way of one node to the broker and to the database."""

    def __init__(self, engines: Engines, url: str) -> None:
        self.broker = proxy.Proxy(engines.broker_address)
        self.database = proxy.Proxy(engines.database_address)
        self.environment = {
            "SLUICE_BROKER_URL": f"redis://127.0.0.1:{self.broker.port}/0",
            "SLUICE_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{self.database.port}/{urlsplit(url).path[1:]}",
        }

    def fault(self, where: str, kind: str) -> None:
        """`where` is broker, database or both; `kind` one of proxy.KINDS."""
        for name in ("broker", "database"):
            if where in (name, "both"):
                getattr(self, name).fault(kind)

    def heal(self) -> None:
        self.broker.heal()
        self.database.heal()

    def close(self) -> None:
        self.broker.close()
        self.database.close()


class Fleet:
    """What a scenario works with. `rng` is seeded by the scenario's name; `scale` multiplies its rounds."""

    def __init__(
        self, engines: Engines, name: str, seed: str, scale: float, seconds: float, *, lease: float = 20.0
    ) -> None:
        self.engines = engines
        self.rng = random.Random(f"{seed} {name}")
        self.scale = scale
        self.directory = engines.directory / name
        shutil.rmtree(self.directory, ignore_errors=True)
        self.ledger = self.directory / "ledger"
        self.ledger.mkdir(parents=True)
        self.deadline = time.monotonic() + seconds
        self.database = name
        engines.drop(name)
        self.url = engines.database(name)
        engines.flush()
        self.engine: Engine = connect(self.url, application_name="chaos")
        self.doorbell = Doorbell(celery_app(engines.valkey.url))
        self.services: list[Service] = []
        self.created: list[int] = []
        self.doomed: set[int] = set()  # runs that the scenario itself judges: they may fail
        self.links: dict[str, Link] = {}
        self.problems: list[str] = []
        self.lease = lease
        self._lines: list[dict[str, Any]] = []
        self._read = 0  # bytes of the ledger that are in _lines
        self.mark = uuid.uuid4().hex

    # --- processes ------------------------------------------------------------------------------------------------

    def spawn(self, role: str, node_id: str, *, slots: int = 4, **environment: str) -> Service:
        """Start a process; what it starts carries a mark in its environment, by which it is found again."""
        variables = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLUICE_", "AWS_", "CHAOS_"))},
            "SLUICE_DATABASE_URL": self.url,
            "SLUICE_BROKER_URL": self.engines.valkey.url,
            "SLUICE_ARTIFACTS_URL": self.engines.artifacts,
            "SLUICE_STORAGE_URL": f"file://{self.directory}/storage",
            "SLUICE_HEARTBEAT_SECONDS": "0.3",
            "SLUICE_LEASE_SECONDS": str(self.lease),
            "SLUICE_ROLE": role,
            "SLUICE_NODE_ID": node_id,
            "SLUICE_SLOTS": str(slots),
            "SLUICE_HOME": str(self.directory / node_id),
            "SLUICE_LEDGER": str(self.ledger),
            "CHAOS_MARK": self.mark,
            **(self.links[node_id].environment if node_id in self.links else {}),
            **environment,
        }
        if any(name.startswith("CHAOS_") for name in environment):
            variables["PYTHONPATH"] = str(HERE / "sabotage")
        before = self._registrations(node_id)
        with (self.directory / f"{node_id}.log").open("ab") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", "runner.cli", role],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        service = Service(role, node_id, {"slots": slots, **environment}, popen, before)
        self.services.append(service)
        return service

    def start(
        self, *, workers: int = 2, schedulers: int = 1, slots: int = 4, linked: bool = False, **environment: str
    ) -> None:
        """Bring up workers w1…, schedulers s1…, all registered.

        linked: each has a way of its own to the broker and to the database, in `links` by its name.
        """
        if linked:
            for name in [f"s{i + 1}" for i in range(schedulers)] + [f"w{i + 1}" for i in range(workers)]:
                self.link(name)
        started = [self.spawn("scheduler", f"s{i + 1}", **environment) for i in range(schedulers)]
        started += [self.spawn("worker", f"w{i + 1}", slots=slots, **environment) for i in range(workers)]
        for service in started:
            self.registered(service)

    def pipelines(self, name: str = "pipelines") -> Path:
        """A copy of these pipelines, to be added to and published."""
        return self.engines.pipelines(name, self.directory)

    def link(self, node_id: str) -> Link:
        self.links[node_id] = Link(self.engines, self.url)
        return self.links[node_id]

    def publish(self, folder: Path) -> None:
        self.engines.publish(folder, self.url)

    def registered(self, service: Service) -> None:
        """Wait until this very start of the service is up, or has ended."""
        self.wait(
            lambda: not service.alive() or self._registrations(service.node_id) > service.registrations,
            f"{service.node_id} registers",
        )

    def _registrations(self, node_id: str) -> int:
        sql = "SELECT count(*) FROM event WHERE kind = 'node' AND node_id = :n AND detail LIKE 'registered%'"
        return int(self.one(sql, n=node_id))

    def restart(self, service: Service) -> Service:
        """Start the node's service again, as its unit would."""
        options = dict(service.options)
        return self.spawn(service.role, service.node_id, slots=options.pop("slots"), **options)

    def workers(self) -> list[Service]:
        return [s for s in self.services if s.role == "worker" and s.alive() and not s.ending]

    def schedulers(self) -> list[Service]:
        return [s for s in self.services if s.role == "scheduler" and s.alive() and not s.ending]

    def children(self, worker: Service) -> list[psutil.Process]:
        """The processes of a worker in which tasks run at this moment."""
        open_pids: dict[int, int] = {}
        for line in self.ledger_lines():
            open_pids[line["pid"]] = 1 if line["event"] == "start" else 0
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(worker.popen.pid).children(recursive=True)
            return [p for p in found if open_pids.get(p.pid)]
        return []

    def family(self, service: Service) -> list[int]:
        """The pids of a service and of all it has started."""
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(service.popen.pid).children(recursive=True)
            return [service.popen.pid, *(p.pid for p in children)]
        return [service.popen.pid]

    def ledger_lines(self) -> list[dict[str, Any]]:
        """What the tasks have written so far."""
        path = self.ledger / "ledger.jsonl"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._lines.append(json.loads(line))
                    self._read += len(line)
        return self._lines

    def log(self, node_id: str) -> str:
        """What a service has written to its log so far."""
        return (self.directory / f"{node_id}.log").read_text(errors="replace")

    def refused(self) -> int:
        """Claims that found nothing to take, in the services that were started with CHAOS_WATCH."""
        return sum(len(path.read_text().splitlines()) for path in self.directory.glob("*.refused"))

    # --- work -----------------------------------------------------------------------------------------------------

    def run(self, dag_id: str, times: int = 1, **params: Any) -> list[int]:
        """Create runs; the schedulers do the rest."""
        made = []
        for _ in range(times):
            with self.engine.begin() as c:
                run = transitions.create_run(c, dag_id, dt.datetime.now(dt.UTC), params=params)
            assert run is not None
            made.append(run)
        self.created += made
        return made

    def warm(self) -> None:
        """Run something on every worker, so that none still imports the pipelines when a fault comes."""
        while {w.node_id for w in self.workers()} - {line["node"] for line in self.ledger_lines()}:
            self.run("wide", seconds=[0.1, 0.1])
            self.wait(self.over, "the workers are warm")

    def rounds(self, n: int) -> range:
        return range(max(1, round(n * self.scale)))

    def cordon(self, node_id: str, seconds: float = 60) -> bool:
        with self.engine.begin() as c:
            return nodes.cordon(c, node_id, reason="chaos", by="chaos", deadline_seconds=seconds)

    def gone(self, node_id: str) -> None:
        with self.engine.begin() as c:
            nodes.gone(c, node_id, cause="terminated")

    def power_off(self, service: Service) -> None:
        """End a node as a power cut does: all its processes at once."""
        service.ending = True
        for ref in process.tree(service.popen.pid):
            ref.signal(signal.SIGKILL)
        service.popen.wait()

    def terminate(self, service: Service) -> None:
        """TERM a service that is drained, and say that its machine is gone, as the agent does."""
        service.signal(signal.SIGTERM)
        self.wait(lambda: not service.alive(), f"{service.node_id} ends")
        self.gone(service.node_id)

    # --- looking --------------------------------------------------------------------------------------------------

    def all(self, sql: str, **values: Any) -> Sequence[Any]:
        """Rows; a database that is away is asked again until the scenario's time is over."""
        while True:
            try:
                with self.engine.begin() as c:
                    return c.execute(text(sql), values).all()
            except DBAPIError:
                if time.monotonic() > self.deadline:
                    raise
                time.sleep(0.1)

    def one(self, sql: str, **values: Any) -> Any:
        rows = self.all(sql, **values)
        return rows[0][0] if rows else None

    def wait(self, what: Callable[[], Any], why: str, seconds: float | None = None, every: float = 0.05) -> Any:
        """Wait until `what` is true and return it; it is asked every so many seconds. Raises TimeUp."""
        end = self.deadline if seconds is None else min(self.deadline, time.monotonic() + seconds)
        while True:
            found = what()
            if found:
                return found
            if time.monotonic() > end:
                raise TimeUp(f"not in time: {why}")
            time.sleep(max(0.05, every))

    def busy(self, tasks: int = 1, node_id: str | None = None) -> None:
        """Wait until so many tasks run, on this node or anywhere; or until all is over, if it was quicker."""
        sql = (
            "SELECT count(*) FROM task_instance WHERE state = 'running' AND (CAST(:n AS text) IS NULL OR node_id = :n)"
        )
        self.wait(
            lambda: self.one(sql, n=node_id) >= tasks or self.over(), f"{tasks} tasks run on {node_id or 'any node'}"
        )

    def running(self, node_id: str) -> int:
        """Tasks that the database thinks this node runs."""
        return int(self.one("SELECT count(*) FROM task_instance WHERE state = 'running' AND node_id = :n", n=node_id))

    def state(self, node_id: str) -> str:
        return str(self.one("SELECT state FROM node WHERE node_id = :n", n=node_id))

    def over(self) -> bool:
        return bool(self.one("SELECT count(*) = 0 FROM dag_run WHERE state = 'running'"))

    @staticmethod
    def now() -> float:
        """What `deadline` is measured by."""
        return time.monotonic()

    def pause(self, low: float, high: float) -> None:
        time.sleep(self.rng.uniform(low, high))

    # --- the end --------------------------------------------------------------------------------------------------

    def check_services(self) -> None:
        """What ended and was not asked to is a problem of its own."""
        for s in self.services:
            if not s.alive() and not s.ending:
                self.problems.append(f"{s.node_id} ended by itself with status {s.popen.returncode}")
                s.ending = True

    def stop(self) -> None:
        """TERM everything, as a unit would; what stays, or what a task left behind, is a problem."""
        for link in self.links.values():
            link.heal()
        for s in self.services:
            s.signal(signal.SIGCONT)
            s.signal(signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        for s in self.services:
            try:
                s.popen.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.problems.append(f"{s.node_id} did not end within {STOP_SECONDS:g} s of TERM")
        time.sleep(0.2)
        left = self.close()
        if left and not self.problems:
            self.problems.append(f"{left} processes outlived their worker")

    def close(self) -> int:
        """KILL whatever is left; returns how many there were."""
        left = process.kill_tree(None, marker=f"CHAOS_MARK={self.mark}")
        for s in self.services:
            s.popen.wait()
        for link in self.links.values():
            link.close()
        with contextlib.suppress(Exception):
            self.doorbell.close()
        self.engine.dispose()
        return left
