from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import uvicorn
from sqlalchemy import Engine, text

from runner.settings import Settings, SluiceError
from runner.state import nodes, queries
from runner.web import main

from .conftest import World

_CODE = "import sys; from runner.settings import load; from runner.web.main import run; sys.exit(run(load()))"


def wait(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def process(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    env = {
        **os.environ,
        "SLUICE_DATABASE_URL": settings.database_url,
        "SLUICE_HOME": str(settings.home),
        "SLUICE_WEB_PORT": "0",
        "SLUICE_NODE_ID": "w1",
        "SLUICE_RELEASE": "r9",
        "SLUICE_HEARTBEAT_SECONDS": "0.1",
    }
    running = subprocess.Popen([sys.executable, "-c", _CODE], env=env)
    yield running
    if running.poll() is None:
        running.kill()
    running.wait()


def port_of(settings: Settings) -> int:
    file = settings.home / "web.port"
    wait(file.exists)
    return int(file.read_text())


def test_the_process_serves_streams_and_ends_when_told(
    process: subprocess.Popen[bytes], settings: Settings, world: World, engine: Engine
) -> None:
    """Given an open stream and an idle connection, when the process is told to stop, then it is gone in 2 s."""
    base = f"http://127.0.0.1:{port_of(settings)}"
    wait(lambda: _answers(base))
    heard: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        with httpx.stream("GET", f"{base}/api/v1/stream", params={"kind": "run"}, timeout=20) as answer:
            for line in answer.iter_lines():
                heard.put(line)
        heard.put("END")

    listener = threading.Thread(target=listen)
    listener.start()
    while "reset" not in heard.get(timeout=10):
        pass  # it follows from here on
    run = world.run()
    lines = []
    while not lines or not lines[-1].startswith("data: [{"):
        lines.append(heard.get(timeout=10))
    assert f'"subject":"{run}","state":"running"' in lines[-1]

    # it is a node, and obeys a drain
    with engine.connect() as c:
        node = next(n for n in queries.fleet(c) if n.node_id == "w1")
    assert (node.role, node.release, node.address) == ("web", "r9", base.removeprefix("http://"))
    with engine.begin() as c:
        nodes.cordon(c, "w1", reason="roll", by="ana", deadline_seconds=60)
    wait(lambda: _state(engine) == "drained")
    world.sql("DELETE FROM node WHERE node_id = 'w1'")
    wait(lambda: _state(engine) == "ready")  # it registered again

    with httpx.Client(base_url=base) as idle:
        assert idle.get("/health").status_code == 200
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert time.monotonic() - began < 2.0
    listener.join(timeout=5)
    assert heard.queue[-1] == "END"
    assert not (settings.home / "web.port").exists()


def test_a_stop_before_the_start_is_not_lost(settings: Settings) -> None:
    """The server listens to signals only while it serves; one that comes earlier ends it all the same."""
    app = main.create(settings)
    server = main._Server(uvicorn.Config(app, log_config=None), app.state.context)
    with main._signals_end(server), socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        os.kill(os.getpid(), signal.SIGTERM)
        server.run(sockets=[listener])

    assert server.told_to_stop


def test_a_taken_port_is_one_clear_line(settings: Settings) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(SluiceError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            main.run(settings.model_copy(update={"web_port": port}))
    assert "SLUICE_WEB_PORT" in caught.value.hint


def _answers(base: str) -> bool:
    try:
        return httpx.get(f"{base}/health").status_code == 200
    except httpx.TransportError:
        return False


def _state(engine: Engine) -> str | None:
    with engine.connect() as c:
        state: str | None = c.execute(text("SELECT state FROM node WHERE node_id = 'w1'")).scalar()
        return state
