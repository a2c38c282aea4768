"""Daemons: found again, stopped whole, never mistaken for another process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.localcloud import process
from runner.settings import SluiceError
from runner.telemetry.alive import birth

SLEEP = "import time; time.sleep(600)"
# Ignores TERM, and has a child.
STUBBORN = (
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    f"print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); time.sleep(600)"
)


@pytest.fixture
def pidfile(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "daemon.pid"
    yield path
    process.stop(path, grace=0)


def launch(pidfile: Path, code: str, **env: str) -> process.Ref:
    return process.start([sys.executable, "-c", code], os.environ | env, pidfile.with_suffix(".log"), pidfile)


def test_a_daemon_outlives_its_starter_and_starting_it_again_finds_it(pidfile: Path) -> None:
    # Given a daemon started by a process that has ended
    code = f"""
import os, sys, pathlib
from runner.localcloud import process
p = pathlib.Path({str(pidfile)!r})
print(process.start([sys.executable, "-c", {SLEEP!r}], os.environ, p.with_suffix(".log"), p).pid)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    assert not done.stderr
    # Then it runs in a session of its own, and starting it again returns it
    assert process.alive(pidfile)
    assert os.getsid(pid) == pid
    assert launch(pidfile, SLEEP).pid == pid
    # When it is stopped, it is gone and so is its pid file
    assert process.stop(pidfile) == "stopped"
    assert birth(pid) is None
    assert not pidfile.exists()
    assert process.stop(pidfile) == ""


def test_a_recycled_pid_is_never_signalled(pidfile: Path) -> None:
    # Given a pid file whose pid now belongs to somebody else
    stranger = subprocess.Popen([sys.executable, "-c", SLEEP])
    try:
        pidfile.write_text(json.dumps({"pid": stranger.pid, "started": "boot:1"}))
        # Then it counts as not running, and stopping it leaves the stranger alone
        assert not process.alive(pidfile)
        assert process.stop(pidfile) == ""
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_what_does_not_end_is_killed_with_its_children(pidfile: Path, eventually: Callable[..., Any]) -> None:
    launch(pidfile, STUBBORN)
    child = int(eventually(lambda: pidfile.with_suffix(".log").read_text().strip()))
    assert birth(child)
    assert process.stop(pidfile, grace=0.2) == "killed"
    assert birth(child) is None


def test_children_go_on_where_that_is_asked_for(pidfile: Path, eventually: Callable[..., Any]) -> None:
    launch(pidfile, STUBBORN)
    child = int(eventually(lambda: pidfile.with_suffix(".log").read_text().strip()))
    try:
        assert process.stop(pidfile, grace=0.1, descendants=False) == "killed"
        assert birth(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_exit_status_of_a_daemon_is_known_and_it_leaves_no_zombie(
    pidfile: Path, eventually: Callable[..., Any]
) -> None:
    ref = launch(pidfile, "raise SystemExit(7)")
    eventually(lambda: not ref.alive())
    assert process.exit_code(ref) == 7
    with pytest.raises(ProcessLookupError):
        os.kill(ref.pid, 0)


def test_kill_tree_reaches_what_carries_the_marker_and_nothing_else(
    pidfile: Path, eventually: Callable[..., Any]
) -> None:
    # Given a daemon whose grandchild has lost its parent and has a session of its own, and a bystander
    code = (
        "import subprocess, sys, time; print(subprocess.run([sys.executable, '-c', 'import subprocess, sys;"
        ' print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True,'
        " stdout=-3, stderr=-3).pid)'], capture_output=True, text=True).stdout, flush=True); time.sleep(600)"
    )
    ref = launch(pidfile, code, SLUICE_TEST_MARK="this")
    bystander = launch(pidfile.with_name("other.pid"), SLEEP, SLUICE_TEST_MARK="that")
    orphan = int(eventually(lambda: pidfile.with_suffix(".log").read_text().strip()))
    assert orphan not in {r.pid for r in process.tree(ref.pid)}
    try:
        # When the tree is killed by its marker
        assert process.kill_tree(ref.pid, "SLUICE_TEST_MARK=this") == 2
        # Then both are gone and the bystander is not
        assert not ref.alive()
        assert birth(orphan) is None
        assert bystander.alive()
    finally:
        process.stop(pidfile.with_name("other.pid"), grace=0)


def test_two_starters_at_once_start_one(pidfile: Path) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(launch(pidfile, SLEEP).pid)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


def test_a_program_that_is_not_there_is_one_clear_line(pidfile: Path) -> None:
    with pytest.raises(SluiceError, match="cannot start /nowhere/bin: No such file"):
        process.start(["/nowhere/bin"], {}, pidfile.with_suffix(".log"), pidfile)
    assert not pidfile.exists()
