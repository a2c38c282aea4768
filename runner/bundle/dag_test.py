"""Run one DAG of a directory here and now: what `runner dag test` does."""

from __future__ import annotations

import datetime as dt
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.bundle import environment
from runner.bundle.load import load
from runner.settings import SluiceError, UsageError


def under_its_python(directory: Path) -> None:
    """Start this command again with the bundle's packages, if it has any and they are not here yet.

    Raises BundleError for a lock that cannot be installed. Returns only if there is nothing to do.
    """
    from runner.bundle import requirements

    lock = requirements.read(directory)
    if lock is None or environment.is_whole(Path(sys.prefix)):
        return
    from runner.bundle.collect import cache_directory, collect

    found = collect(lock, cache_directory())
    made = environment.ensure(found.here, cache_directory() / "environments", found.get)
    python = str(environment.python_of(made))
    sys.stdout.flush()
    os.execv(python, [python, "-m", "runner.cli", *sys.argv[1:]])


def run_dag(
    directory: Path,
    dag_id: str,
    date: dt.datetime,
    params: dict[str, Any],
    storage_url: str,
    on_end: Callable[[str, str, Any], None],
) -> None:
    """Run all tasks of a DAG in this process, in dependency order; `on_end` is told of each.

    Raises BundleError for a directory that does not load, UsageError for a DAG that is not in it, and SluiceError
    when a task fails, after its traceback was printed.
    """
    dags = load(directory)
    if dag_id not in dags:
        raise UsageError(f"no DAG {dag_id!r} in {directory}", f"there is {', '.join(sorted(dags)) or 'none'}")
    failed = []

    def end(task_id: str, state: str, value: Any) -> None:
        if state == "failed":
            failed.append(task_id)
        on_end(task_id, state, value)

    try:
        dags[dag_id].test(date, params=params, storage_url=storage_url, on_end=end)
    except Exception as e:
        if not failed:
            raise
        traceback.print_exception(_from(e, directory))
        raise SluiceError(f"task {failed[0]} of DAG {dag_id} failed: {type(e).__name__}: {e}") from None


def _from(error: Exception, directory: Path) -> Exception:
    """The error with the author's own part of its traceback, where there is one."""
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith(f"{directory.resolve()}{os.sep}"):
        trace = trace.tb_next
    return error.with_traceback(trace) if trace is not None else error
