"""What changes from one version of a bundle to another. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.authoring.spec import DagSpec
from runner.bundle.wheels import MANIFEST, Manifest

SCHEDULE = ("schedule", "timezone", "start", "catchup")
Change = tuple[Any, Any]  # before, after; None where there is nothing


@dataclass(frozen=True)
class Content:
    """A version: its files by path, and its DAGs."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    specs: Iterable[DagSpec] = ()


@dataclass(frozen=True)
class FileChange:
    """`kind` is added, removed or changed; `diff` is a unified diff, empty for what is not text."""

    path: str
    kind: str
    diff: str


@dataclass(frozen=True)
class DagChange:
    """A DAG that is in both versions. `schedule` and `options` hold what differs by name; `tasks_changed` by task."""

    dag_id: str
    schedule: dict[str, Change]
    options: dict[str, Change]
    tasks_added: list[str]
    tasks_removed: list[str]
    tasks_changed: dict[str, dict[str, Change]]


@dataclass(frozen=True)
class Changes:
    """Everything that differs. `packages` by name: the version before and after."""

    files: list[FileChange]
    dags_added: list[str]
    dags_removed: list[str]
    dags_changed: list[DagChange]
    packages: dict[str, Change]

    def __bool__(self) -> bool:
        return bool(self.files or self.dags_added or self.dags_removed or self.dags_changed or self.packages)


def compare(before: Content, after: Content) -> Changes:
    """Files, DAGs, tasks, schedules and packages that differ between two versions."""
    old = {s.dag_id: s for s in before.specs}
    new = {s.dag_id: s for s in after.specs}
    changed = (_dag(old[name], new[name]) for name in sorted(old.keys() & new.keys()))
    return Changes(
        files=_files(before.files, after.files),
        dags_added=sorted(new.keys() - old.keys()),
        dags_removed=sorted(old.keys() - new.keys()),
        dags_changed=[c for c in changed if c is not None],
        packages=_differing(_packages(before.files), _packages(after.files)),
    )


def _files(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[FileChange]:
    out = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if path != MANIFEST and old != new:
            kind = "added" if old is None else "removed" if new is None else "changed"
            out.append(FileChange(path, kind, _diff(path, old, new)))
    return out


def _diff(path: str, old: bytes | None, new: bytes | None) -> str:
    try:
        a, b = ((data or b"").decode().splitlines(keepends=True) for data in (old, new))
    except UnicodeDecodeError:
        return ""
    names = f"a/{path}" if old is not None else "/dev/null", f"b/{path}" if new is not None else "/dev/null"
    found = difflib.unified_diff(a, b, *names)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in found)


def _dag(old: DagSpec, new: DagSpec) -> DagChange | None:
    before, after = old.to_json(), new.to_json()
    tasks = [{t["task_id"]: t for t in data.pop("tasks")} for data in (before, after)]
    differing = _differing(before, after)
    both = sorted(tasks[0].keys() & tasks[1].keys())
    change = DagChange(
        dag_id=old.dag_id,
        schedule={k: v for k, v in differing.items() if k in SCHEDULE},
        options={k: v for k, v in differing.items() if k not in SCHEDULE},
        tasks_added=sorted(tasks[1].keys() - tasks[0].keys()),
        tasks_removed=sorted(tasks[0].keys() - tasks[1].keys()),
        tasks_changed={name: d for name in both if (d := _differing(tasks[0][name], tasks[1][name]))},
    )
    return change if differing or change.tasks_added or change.tasks_removed or change.tasks_changed else None


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Change]:
    names = sorted(before.keys() | after.keys())
    return {n: (before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)}


def _packages(files: Mapping[str, bytes]) -> dict[str, str]:
    data = files.get(MANIFEST)
    return {w.name: w.version for w in Manifest.from_bytes(data).wheels} if data else {}
