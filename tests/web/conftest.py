from __future__ import annotations

import contextlib
import datetime as dt
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine, text

from runner.authoring.spec import DagSpec, TaskSpec
from runner.settings import Settings
from runner.state import bundles, nodes, transitions
from runner.state.transitions import Outcome
from runner.web.app import create

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
ODD = "<img src=x onerror=alert(1)>"


@dataclass
class World:
    """Drives the state through the real transitions."""

    engine: Engine
    claims: list[transitions.Claim] = field(default_factory=list)

    def publish(self, *specs: DagSpec, version: str = "v1") -> None:
        with self.engine.begin() as c:
            bundles.register_and_activate(
                c, version=version, name="examples", url="file:///b", size=1, specs=specs, who="ana"
            )

    def node(self, node_id: str = "n1", slots: int = 4, queues: tuple[str, ...] = ("default",)) -> None:
        with self.engine.begin() as c:
            nodes.register(c, nodes.NodeInfo(node_id, "worker", "default", "r1", "boot", slots, queues))

    def run(self, dag_id: str = "chain", date: dt.datetime = NOON) -> int:
        with self.engine.begin() as c:
            run_id = transitions.create_run(c, dag_id, date)
        assert run_id is not None
        return run_id

    def start(self, node_id: str = "n1") -> list[transitions.Claim]:
        """Dispatch what is ready and claim it."""
        with self.engine.begin() as c:
            messages = transitions.dispatch(c)
        with self.engine.begin() as c:
            claims = [
                transitions.claim(c, m.task_instance, m.attempt, node_id=node_id, lease_seconds=60) for m in messages
            ]
        return [c for c in claims if c]

    def finish(self, *claims: transitions.Claim, result: str = "success", error: str | None = None) -> None:
        with self.engine.begin() as c:
            outcomes = [Outcome(x.task_instance, x.token, result, error=error) for x in claims]  # type: ignore[arg-type]
            transitions.finish(c, outcomes)

    def sql(self, statement: str, **values: object) -> None:
        with self.engine.begin() as c:
            c.execute(text(statement), values)


CHAIN = DagSpec(
    dag_id="chain",
    description=f"described {ODD}",
    schedule="@daily",
    tags=("one",),
    tasks=(
        TaskSpec(task_id="first", retries=1, retry_delay_seconds=0.0),
        TaskSpec(task_id="second", upstream=("first",)),
    ),
)


@pytest.fixture
def world(engine: Engine) -> World:
    w = World(engine)
    w.publish(CHAIN, DagSpec(dag_id="alone", tasks=(TaskSpec(task_id="only"),)))
    w.node()
    return w


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        database_url=database_url,
        home=tmp_path / "home",
        storage_url=f"file://{tmp_path}/store",
        heartbeat_seconds=0.2,
        web_port=0,
        env="test",
    )


class Client(httpx.Client):
    """A client of an application that runs on a real server in a thread."""

    def __init__(self, app: FastAPI, port: int) -> None:
        super().__init__(base_url=f"http://127.0.0.1:{port}", timeout=10)
        self.app = app
        self.origin = f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def serve(settings: Settings) -> Iterator[Client]:
    app = create(settings, poll_seconds=0.05)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        try:
            with Client(app, listener.getsockname()[1]) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with serve(settings) as c:
        yield c
