"""`runner flower`: serves on the address it is told, says so to systemd, ends when it is told to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil

from runner.localcloud.engines import free_port


def test_it_answers_and_tells_systemd(broker_url: str, tmp_path: Path) -> None:
    # Given Flower as a unit that systemd waits for
    port = free_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environ = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "SLUICE_BROKER_URL": broker_url}
        environ |= {"FLOWER_PORT": str(port), "PYTHONWARNINGS": "ignore"}
        with (tmp_path / "log").open("wb") as log:
            argv = [sys.executable, "-m", "runner.cli", "flower"]
            running = subprocess.Popen(argv, env=environ, stdout=log, stderr=log)
        try:
            # When it says that it is ready
            assert manager.recv(100) == b"READY=1"
            # Then it answers, on this machine alone
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=30) as answer:
                assert answer.status == 200
            listening = [c.laddr for c in psutil.Process(running.pid).net_connections() if c.status == "LISTEN"]
            assert listening == [("127.0.0.1", port)]
        finally:
            running.terminate()
            code = running.wait(60)
    # And it ends in peace, with no password of the broker on its command line
    assert code == 0, (tmp_path / "log").read_text()
    assert broker_url not in " ".join(argv)
