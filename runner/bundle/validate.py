"""Try a bundle in a child process: what an author's file does while it is imported stays there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from runner.authoring.spec import DagSpec
from runner.bundle.load import BundleError, Problem
from runner.settings import UsageError


def validate(directory: Path, *, timeout_seconds: float = 60.0) -> list[DagSpec]:
    """The DAGs of a directory of pipelines, sorted by id.

    Raises BundleError with every problem found: syntax and import errors, cycles, duplicate ids, bad schedules and
    time zones, and files that do not come to an end within `timeout_seconds`.
    """
    directory = directory.resolve()
    if not directory.is_dir():
        raise UsageError(f"bundle {directory} is not a directory")
    with tempfile.TemporaryDirectory(prefix="sluice-validate-") as temporary:
        answer = Path(temporary) / "answer.json"
        child = subprocess.Popen(
            # -B: no __pycache__ in the author's directory
            [sys.executable, "-B", "-m", "runner.bundle.child", str(directory), str(answer)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            printed, _ = child.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            what = f"still importing after {timeout_seconds:g} s; do slow work in tasks, not while the file is read"
            raise BundleError(directory, [Problem(_current(answer), 0, what)]) from None
        finally:
            # Its own session: whatever the files started ends with it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if child.stdout:
                child.stdout.close()
        try:
            found = json.loads(answer.read_text())
        except (OSError, ValueError):
            last = printed.decode(errors="replace").strip().rpartition("\n")[2]
            what = f"the import ended the process (exit status {child.returncode}) {last}".rstrip()
            raise BundleError(directory, [Problem(_current(answer), 0, what)]) from None
    if found["problems"]:
        raise BundleError(directory, [Problem(*p) for p in found["problems"]])
    return [DagSpec.from_json(s) for s in found["specs"]]


def _current(answer: Path) -> str:
    """The file that was being imported when the child ended."""
    progress = answer.with_suffix(".at")
    return progress.read_text() if progress.exists() else "bundle"
