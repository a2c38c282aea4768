"""Each process tells systemd that it is ready and that it is alive; its children do not speak for it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.telemetry import systemd


class Manager:
    """The receiving end of NOTIFY_SOCKET: who said what."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.said: list[tuple[int, str]] = []

    def hear(self, until: float) -> None:
        self.socket.settimeout(max(0.01, until - time.monotonic()))
        data, credentials, _, _ = self.socket.recvmsg(1000, socket.CMSG_SPACE(12))
        pid, _, _ = struct.unpack("iII", credentials[0][2])
        self.said.append((pid, data.decode()))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.socket.close()


@pytest.mark.parametrize("process", ["scheduler", "worker", "web", "agent"])
def test_it_says_that_it_is_ready_and_goes_on_saying_that_it_lives(
    process: str, manager: Manager, database_url: str, broker_url: str, tmp_path: Path
) -> None:
    # Given a process that systemd starts
    environ = {
        **os.environ,
        "NOTIFY_SOCKET": str(manager.path),
        "SLUICE_DATABASE_URL": database_url,
        "SLUICE_BROKER_URL": broker_url,
        "SLUICE_ARTIFACTS_URL": f"file://{tmp_path}/artifacts",
        "SLUICE_STORAGE_URL": f"file://{tmp_path}/storage",
        "SLUICE_HOME": str(tmp_path / "home"),
        "SLUICE_NODE_ID": "n1",
        "SLUICE_ROLE": "web" if process == "agent" else process,  # the agent has a child that would notify, too
        "SLUICE_WEB_PORT": "0",
        "SLUICE_HEARTBEAT_SECONDS": "0.2",
    }
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen([sys.executable, "-m", "runner.cli", process], env=environ, stdout=log, stderr=log)
    try:
        # When it has been up for a while
        until = time.monotonic() + 30
        while [text for _, text in manager.said].count("WATCHDOG=1") < 2:
            manager.hear(until)
        if process == "agent":
            while not (tmp_path / "home/web.port").exists():
                manager.hear(until)
            settled = time.monotonic() + 1.5  # the child's own word would come now
            with contextlib.suppress(TimeoutError):
                while True:
                    manager.hear(settled)
        # Then it was ready once, before anything else, and nobody but the process itself was heard
        texts = [text for _, text in manager.said]
        assert texts.count("READY=1") == 1
        assert texts[0] == "READY=1" or process == "worker"
        assert {pid for pid, _ in manager.said} == {running.pid}
    except TimeoutError:
        pytest.fail(f"heard {manager.said}; {(tmp_path / 'log').read_text()[-2000:]}")
    finally:
        running.terminate()
        assert running.wait(20) == 0


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nothing"))
    systemd.notify("WATCHDOG=1")


def test_a_child_gets_no_voice() -> None:
    assert systemd.without({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "HOME": "/root"}) == {"HOME": "/root"}
