"""An example both ways an author runs it, and what it talks to."""

from __future__ import annotations

import datetime as dt
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import runner.examples
from runner.authoring import DAG
from runner.bundle import load
from runner.bundle.load import _forget

EXAMPLES = Path(next(iter(runner.examples.__path__)))

Command = Callable[..., dict[str, Any]]


@pytest.fixture
def example() -> Iterator[Callable[[str], dict[str, DAG]]]:
    """The DAGs of a directory, by id."""
    yield lambda name: load(EXAMPLES / name)
    _forget()


@pytest.fixture
def dag_test(tmp_path: Path) -> Command:
    """`runner dag test DAG` in an example's directory: task id → {"state", "value"}."""

    def call(name: str, dag_id: str, date: dt.datetime) -> dict[str, Any]:
        command = [sys.executable, "-m", "runner.cli", "dag", "test", dag_id, "--dir", str(EXAMPLES / name), "--json"]
        command += ["--date", date.isoformat(), "--storage", f"file://{tmp_path}/cli"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    return call


class Web(http.server.ThreadingHTTPServer):
    """Answers GET with `answers[path]`, keeps what is PUT."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, bytes] = {"/": b"ok"}
        self.got: list[tuple[str, str]] = []
        self.host = f"127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        body = self.server.answers.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.got.append((self.path, body))
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
