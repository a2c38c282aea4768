"""Try a bundle in a child process: what an author's file does while it is imported stays there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from runner.authoring.spec import DagSpec
from runner.bundle.load import IMPORT_ERROR as IMPORT_ERROR
from runner.bundle.load import Known as Known
from runner.bundle.problem import BundleError, Problem
from runner.settings import UsageError

FILE_SECONDS = 30.0  # for one file
TOTAL_SECONDS = 180.0  # for all files together
MEMORY = 1 << 30  # bytes; what a process that imports the bundle may hold beyond its code
_TAIL = 4096  # bytes of what the files print that are kept


def validate(
    directory: Path,
    *,
    timeout_seconds: float = FILE_SECONDS,
    memory_bytes: int = MEMORY,
    python: str | None = None,
    known: Known | None = None,
) -> list[DagSpec]:
    """The DAGs of a directory of pipelines, sorted by id.

    `python` is the interpreter of the bundle's environment, `known` is what the fleet's environment has for
    tasks to name (None: not looked at). Raises BundleError with every problem found: syntax and
    import errors, cycles, duplicate ids, bad schedules and time zones, values that no database holds, and files that
    take longer than `timeout_seconds` each, need more than `memory_bytes` or end the process.
    """
    directory = directory.resolve()
    if not directory.is_dir():
        raise UsageError(f"bundle {directory} is not a directory")
    fatal: dict[str, Problem] = {}  # by the file that ended its process: the next one goes without it
    end = time.monotonic() + TOTAL_SECONDS
    order: dict[str, Any] = {"directory": str(directory), "seconds": timeout_seconds, "memory": memory_bytes}
    order["known"] = None if known is None else [sorted(names) for names in known]
    while True:
        left = end - time.monotonic()
        found = _attempt(directory, python or sys.executable, {**order, "skip": list(fatal)}, left)
        if isinstance(found, Problem):
            again = found.file in fatal
            fatal[found.file] = found
            if again or not (directory / found.file).is_file() or time.monotonic() > end:
                raise BundleError(directory, sorted(fatal.values()))
            continue
        problems = sorted({*fatal.values(), *(Problem(*p) for p in found["problems"])})
        if problems:
            raise BundleError(directory, problems)
        return [DagSpec.from_json(s) for s in found["specs"]]


def _attempt(directory: Path, python: str, order: dict[str, Any], total: float) -> dict[str, Any] | Problem:
    """What the child says, or the file on which it ended without a word."""
    with tempfile.TemporaryDirectory(prefix="sluice-validate-") as temporary:
        answer = Path(temporary) / "answer.json"
        child = subprocess.Popen(
            # -B: no __pycache__ in the author's directory
            [python, "-B", "-m", "runner.bundle.child", json.dumps(order), str(answer)],
            # Libraries that keep memory for each core would come to the limit on a big machine by their import alone.
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert child.stdout is not None
        printed = bytearray()
        reader = threading.Thread(target=_keep_tail, args=(child.stdout, printed), daemon=True)
        reader.start()
        try:
            child.wait(max(total, 0.1))
        except subprocess.TimeoutExpired:
            return Problem(_current(answer), 0, f"still importing when {TOTAL_SECONDS:g} s for the bundle were over")
        finally:
            # Its own session: whatever the files started ends with it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            reader.join(1)
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(answer.read_text()))
        return _ended(directory, answer, child.returncode, printed, order["seconds"])


def _ended(directory: Path, answer: Path, status: int, printed: bytearray, seconds: float) -> Problem:
    """Why the child ended, at the line where faulthandler saw it last."""
    file = _current(answer)
    trace = answer.with_suffix(".trace")
    stack = trace.read_text(errors="replace") if trace.exists() else ""
    lines = re.findall(rf'File "{re.escape(str(directory))}{os.sep}(.+?)", line (\d+)', stack)
    line = next((int(number) for name, number in lines if name == file), 0)
    if stack.startswith("Timeout"):
        what = f"still importing after {seconds:g} s; do slow work in tasks, not while the file is read"
    else:
        last = printed.decode(errors="replace").strip().rpartition("\n")[2]
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        what = f"the import ended the process ({how}) {last}".rstrip()
    return Problem(file, line, what)


def _keep_tail(pipe: BinaryIO, into: bytearray) -> None:
    with pipe:
        while block := pipe.read1(1 << 16):  # type: ignore[attr-defined]
            into += block
            del into[:-_TAIL]


def _current(answer: Path) -> str:
    """The file of which code was being run when the child ended."""
    progress = answer.with_suffix(".at")
    return progress.read_text() if progress.exists() else "bundle"
