"""A DAG as plain data: what the database, the scheduler and the web pages know of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from runner.authoring.timetables import Timetable, from_plain


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task. `inputs` are the upstream tasks whose return value it takes; each is in `upstream` too."""

    task_id: str
    queue: str = "default"
    priority: int = 0
    retries: int = 0
    retry_delay_seconds: float = 60.0
    timeout_seconds: float | None = None
    trigger_rule: str = "all_success"
    upstream: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TaskSpec:
        """The inverse of `to_json`. Keys this release does not know are left out."""
        return cls(**_known(cls, data, tuples=("upstream", "inputs")))


@dataclass(frozen=True, kw_only=True)
class DagSpec:
    """A DAG and its tasks, in the order they were written.

    `schedule` is None (only by hand), a cron expression or a preset such as `@daily`, read in `timezone` (an
    IANA name), or a JSON object for any other timetable (`text` in it is for people). `start` is an aware
    ISO 8601 time before which nothing is scheduled. `max_active_runs` None means no limit of its own.
    """

    dag_id: str
    description: str = ""
    schedule: str | dict[str, Any] | None = None
    timezone: str = "UTC"
    start: str | None = None
    catchup: bool = False
    max_active_runs: int | None = None
    tags: tuple[str, ...] = ()
    tasks: tuple[TaskSpec, ...] = ()

    def timetable(self) -> Timetable:
        """When it runs. Raises TimetableError for a schedule that this release does not know."""
        return from_plain(self.schedule, self.timezone)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "tags": list(self.tags), "tasks": [t.to_json() for t in self.tasks]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DagSpec:
        """The inverse of `to_json`. Keys this release does not know are left out."""
        values = _known(cls, data, tuples=("tags",))
        values["tasks"] = tuple(TaskSpec.from_json(t) for t in data.get("tasks", ()))
        return cls(**values)


def _known(cls: type, data: dict[str, Any], tuples: tuple[str, ...]) -> dict[str, Any]:
    # During a roll an older node reads what a newer one wrote: a new key must not stop it.
    names = {f.name for f in dataclasses.fields(cls)}
    return {k: tuple(v) if k in tuples else v for k, v in data.items() if k in names}
