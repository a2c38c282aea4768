"""Import a bundle's files and find its DAGs, or everything that is wrong with it."""

from __future__ import annotations

import datetime as dt
import importlib
import os
import resource
import sys
import traceback
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from runner.authoring import DAG, AuthoringError
from runner.authoring.dag import collecting
from runner.authoring.timetables import Manual, TimetableError
from runner.authoring.values import not_json
from runner.bundle import environment
from runner.bundle.cache import hold
from runner.bundle.problem import BundleError, Problem

IMPORT_ERROR = "import error"
_loaded: list[str] = []  # directories put on sys.path by the last load
_LONG_AGO = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def load(directory: Path) -> dict[str, DAG]:
    """dag_id → DAG of every top-level *.py of a bundle, imported with the bundle first on sys.path.

    One bundle at a time: what an earlier load imported is forgotten. The directory is marked as in use until the
    process and its forked children have ended, so a cache does not remove it. Raises BundleError.
    """
    dags, problems = inspect(directory)
    if problems:
        raise BundleError(directory, problems)
    return dags


class Known(NamedTuple):
    """What an environment has that tasks may name."""

    connections: Collection[str]
    pools: Collection[str]


def inspect(
    directory: Path,
    at: Callable[[str], None] | None = None,
    skip: Collection[str] = (),
    known: Known | None = None,
) -> tuple[dict[str, DAG], list[Problem]]:
    """What `load` finds, with the problems beside it instead of raised.

    `at`, for a bundle that is being validated, is told each file before code of it is run; whole DAGs are looked at
    only then. Files in `skip` are left out. `known` is what the environment has, None if no one asks.
    """
    directory = directory.resolve()
    hold(directory)
    environment.enter()
    _forget()
    problems: list[Problem] = []
    files = pipeline_files(directory)
    sys.path.insert(0, str(directory))
    _loaded.append(str(directory))
    importlib.invalidate_caches()
    with collecting() as found:
        for path in files:
            if path.stem in sys.stdlib_module_names:
                problems.append(Problem(path.name, 0, f"has the name of Python's own module {path.stem}; rename it"))
                continue
            if path.name in skip:
                continue
            if at is not None:
                at(path.name)
            _attempt(directory, path.name, problems, partial(importlib.import_module, path.stem))
        for factory in found.uncalled():
            if at is not None:
                at(Path(factory.place.file).name)
            _attempt(directory, Path(factory.place.file).name, problems, factory)
    for made in found.dags.values() if at is not None else ():  # every worker need not do it again
        _attempt(directory, Path(made.place.file).name, problems, partial(_check, directory, made, problems, known))
    if not found.dags and not problems and not skip:
        problems.append(Problem(directory.name, 0, "no DAG found in its top-level *.py files"))
    return found.dags, sorted(set(problems))


def pipeline_files(directory: Path) -> list[Path]:
    """The top-level *.py files that are imported: all but an author's tests."""
    return sorted(
        p for p in directory.glob("*.py") if not p.name.startswith(("test_", ".")) and p.name != "conftest.py"
    )


def _attempt(directory: Path, file: str, problems: list[Problem], call: Callable[[], object]) -> None:
    try:
        call()
    except AuthoringError as e:
        problems.append(Problem(_relative(directory, e.place.file), e.place.line, e.what))
    except SyntaxError as e:
        problems.append(Problem(_relative(directory, e.filename or file), e.lineno or 0, f"syntax error: {e.msg}"))
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # SystemExit too: a file that calls sys.exit() must not end a worker
        problems.append(_from_traceback(directory, file, e))


def _from_traceback(directory: Path, file: str, error: BaseException) -> Problem:
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(f"{directory}{os.sep}")]
    text = " ".join(str(error).split())
    if isinstance(error, ImportError):
        what = f"{IMPORT_ERROR}: {text}"
    elif isinstance(error, MemoryError):
        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        most = f" more than {limit >> 20} MiB of" if limit != resource.RLIM_INFINITY else " too much"
        what = f"needs{most} memory while importing; load data in tasks, not while the file is read"
    else:
        what = f"{type(error).__name__} while importing" + (f": {text}" if text else "")
    if own:
        return Problem(_relative(directory, own[-1].filename), own[-1].lineno or 0, what)
    return Problem(file, 0, what)


def _check(directory: Path, made: DAG, problems: list[Problem], known: Known | None) -> None:
    """Find out what is wrong with a whole DAG. Raises AuthoringError for a circle in it."""
    what = not_json(made.spec().to_json())  # what the database cannot hold
    if what:
        problems.append(Problem(_relative(directory, made.place.file), made.place.line, f"DAG {made.dag_id!r}: {what}"))
    problems += _schedule_problems(directory, made)
    if known is None:
        return
    for task_id, node in made.nodes.items():
        missing = [f"connection {name!r}" for name in sorted(set(node.options.connections) - set(known.connections))]
        if node.options.pool is not None and node.options.pool not in known.pools:
            missing.append(f"pool {node.options.pool!r}")
        for name in missing:
            what = f"task {task_id!r} needs the {name}, which this environment does not have"
            problems.append(Problem(_relative(directory, node.place.file), node.place.line, what))


def _schedule_problems(directory: Path, made: DAG) -> list[Problem]:
    timetable = made.timetable
    try:
        # What is over is no mistake: a one-off stays in its file.
        if isinstance(timetable, Manual) or timetable.after(dt.datetime.now(dt.UTC)) or timetable.after(_LONG_AGO):
            return []
        why = "it never comes"
    except TimetableError as e:
        why = e.what
    what = f"DAG {made.dag_id!r}: bad schedule '{made.schedule}': {why}"
    return [Problem(_relative(directory, made.place.file), made.place.line, what)]


def _relative(directory: Path, file: str) -> str:
    path = Path(file)
    return path.relative_to(directory).as_posix() if path.is_relative_to(directory) else file


def _forget() -> None:
    """Undo the last load, so that a file of the same name in another bundle is not taken for this one's."""
    for directory in _loaded:
        if directory in sys.path:
            sys.path.remove(directory)
        for name, module in list(sys.modules.items()):
            if _is_from(module, directory):
                del sys.modules[name]
    _loaded.clear()


def _is_from(module: ModuleType | None, directory: str) -> bool:
    file = getattr(module, "__file__", None)
    paths = [file] if file else list(getattr(module, "__path__", []))
    return any(isinstance(p, str) and p.startswith(f"{directory}{os.sep}") for p in paths)
