"""A DAG as plain data: what the database, the scheduler and the web pages know of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from runner.authoring.timetables import Timetable, from_plain


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task. `inputs` are the upstream tasks whose return value it takes; each is in `upstream` too.

    retry_*: each delay is `retry_backoff` times the one before, at most `retry_max_delay_seconds`, less a random
    share of up to `retry_jitter` (0 to 1) of it. map_over: of a mapped task, one entry an argument: {"arg", "task"}
    maps over what the upstream task returned, {"arg", "length"} over a list of the pipeline's text. sensor: of a
    sensor, what it waits for, as plain data. execution: {"isolation": "reuse" | "fresh", "memory_mb", "cpu_seconds"}.
    on_lost: "retry", or "hold" to wait for proof that the node is dead. Kinds: task, sensor, mapped, callback.
    """

    task_id: str
    kind: str = "task"
    queue: str = "default"
    priority: int = 0
    retries: int = 0
    retry_delay_seconds: float = 60.0
    retry_backoff: float = 1.0
    retry_max_delay_seconds: float | None = None
    retry_jitter: float = 0.0
    timeout_seconds: float | None = None
    trigger_rule: str = "all_success"
    pool: str | None = None
    pool_slots: int = 1
    max_active: int | None = None
    depends_on_past: bool = False
    setup: bool = False
    teardown: bool = False
    group: str | None = None
    on_lost: str = "retry"
    execution: dict[str, Any] = field(default_factory=dict)
    map_over: tuple[dict[str, Any], ...] = ()
    sensor: dict[str, Any] | None = None
    outlets: tuple[str, ...] = ()
    notify: tuple[dict[str, Any], ...] = ()
    upstream: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TaskSpec:
        """The inverse of `to_json`. Keys this release does not know are left out."""
        return cls(**_known(cls, data, tuples=("upstream", "inputs", "outlets", "notify", "map_over")))


@dataclass(frozen=True, kw_only=True)
class DagSpec:
    """A DAG and its tasks, in the order they were written.

    `schedule` is None (only by hand), a cron expression or a preset such as `@daily`, read in `timezone` (an
    IANA name), or a JSON object for any other timetable (`text` in it is for people). `start` is an aware
    ISO 8601 time before which nothing is scheduled. `max_active_runs` None means no limit of its own; more runs than
    that wait. `max_active_tasks` counts over all runs of the DAG. `callbacks` are tasks that run when a run has ended:
    ids `@on_success` and `@on_failure`. `assets`: the condition for a run over assets, as authoring.assets has it.
    `params`: name → JSON Schema, with its default. `notify`: as authoring.notifiers.Notify.to_json has it.
    """

    dag_id: str
    description: str = ""
    schedule: str | dict[str, Any] | None = None
    assets: dict[str, Any] | None = None
    timezone: str = "UTC"
    start: str | None = None
    catchup: bool = False
    max_active_runs: int | None = None
    max_active_tasks: int | None = None
    run_timeout_seconds: float | None = None
    params: dict[str, Any] = field(default_factory=dict)
    notify: tuple[dict[str, Any], ...] = ()
    tags: tuple[str, ...] = ()
    tasks: tuple[TaskSpec, ...] = ()
    callbacks: tuple[TaskSpec, ...] = ()

    def timetable(self) -> Timetable:
        """When it runs. Raises TimetableError for a schedule that this release does not know."""
        return from_plain(self.schedule, self.timezone)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        tasks = [t.to_json() for t in self.tasks]
        callbacks = [t.to_json() for t in self.callbacks]
        return {
            **vars(self),
            "tags": list(self.tags),
            "notify": list(self.notify),
            "tasks": tasks,
            "callbacks": callbacks,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DagSpec:
        """The inverse of `to_json`. Keys this release does not know are left out."""
        values = _known(cls, data, tuples=("tags", "notify"))
        for name in ("tasks", "callbacks"):
            values[name] = tuple(TaskSpec.from_json(t) for t in data.get(name, ()))
        return cls(**values)


def _known(cls: type, data: dict[str, Any], tuples: tuple[str, ...]) -> dict[str, Any]:
    # During a roll an older node reads what a newer one wrote: a new key must not stop it.
    names = {f.name for f in dataclasses.fields(cls)}
    return {k: tuple(v) if k in tuples else v for k, v in data.items() if k in names}
