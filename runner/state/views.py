"""What the queries return: frozen dataclasses, and `to_json` to make plain JSON values of them."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def to_json(value: Any) -> Any:
    """Plain JSON values: dataclasses become objects, times ISO 8601 in UTC."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(v) for v in value]
    return value


@dataclass(frozen=True)
class RecentRun:
    """One of a DAG's last runs, as much as a coloured dot says."""

    id: int
    state: str
    logical_date: str  # ISO 8601


@dataclass(frozen=True)
class DagRow:
    """A DAG as a line of a list. `recent` holds its last runs, newest first."""

    dag_id: str
    description: str
    tags: list[str]
    bundle: str
    bundle_version: str
    active: bool
    paused: bool
    schedule: str | None
    timezone: str
    next_run_at: dt.datetime | None
    tasks: int
    recent: list[RecentRun]


@dataclass(frozen=True)
class DagDetail(DagRow):
    """A DAG with what its active bundle version says of it (authoring.spec.DagSpec as JSON)."""

    spec: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRow:
    """A run as a line of a list: `unfinished` of its `tasks` are not over."""

    id: int
    dag_id: str
    bundle_version: str
    logical_date: dt.datetime
    interval_start: dt.datetime
    interval_end: dt.datetime
    run_type: str
    params: dict[str, Any]
    state: str
    tasks: int
    unfinished: int
    created_at: dt.datetime
    ended_at: dt.datetime | None
    seconds: float  # from its creation to its end, or until now


@dataclass(frozen=True)
class TaskRow:
    """A task instance as a line of a list. `tries` counts what ended by itself, `interruptions` what did not."""

    id: int
    run_id: int
    dag_id: str
    task_id: str
    map_index: int
    state: str
    queue: str
    priority: int
    attempt: int
    tries: int
    max_tries: int
    interruptions: int
    available_at: dt.datetime | None
    queued_at: dt.datetime | None
    started_at: dt.datetime | None
    ended_at: dt.datetime | None
    seconds: float | None  # of the last attempt, until now while it runs
    node_id: str | None
    error: str | None


@dataclass(frozen=True)
class RunDetail(RunRow):
    """A run with its task instances: `counts` of all by state, and in `task_instances` those asked for."""

    counts: dict[str, int] = field(default_factory=dict)
    task_instances: list[TaskRow] = field(default_factory=list)


@dataclass(frozen=True)
class EventRow:
    """One transition. `subject` is a task instance id, run id, node id or rollout id, as `kind` says."""

    id: int
    at: dt.datetime
    kind: str
    subject: str
    state: str
    run_id: int | None
    attempt: int | None
    node_id: str | None
    detail: str | None


@dataclass(frozen=True)
class TaskDetail(TaskRow):
    """A task instance with its history, oldest first."""

    bundle_version: str = ""
    trigger_rule: str = ""
    waiting_on: int = 0
    timeout_seconds: float | None = None
    logical_date: dt.datetime | None = None
    events: list[EventRow] = field(default_factory=list)


@dataclass(frozen=True)
class NodeRow:
    """A node of the fleet. `live` says that it was heard of lately."""

    node_id: str
    role: str
    pool: str
    state: str
    reason: str | None
    requested_by: str | None
    deadline_at: dt.datetime | None
    seconds_left: float | None  # until the end of its drain
    release: str
    slots: int
    queues: list[str]
    running: int
    heartbeat_age_seconds: float | None  # None before the first
    live: bool
    instance_id: str
    address: str
    registered_at: dt.datetime
    changed_at: dt.datetime
    changed_seconds: float  # since changed_at
    after_drain: str  # what the agent does with the machine then: nothing, terminate, replace


@dataclass(frozen=True)
class QueueRow:
    """A queue: tasks due now (`ready`), due later (`delayed`), on the broker, running; and who could take them."""

    queue: str
    ready: int
    delayed: int
    queued: int
    running: int
    slots: int
    nodes: int
    oldest_wait_seconds: float | None
    interruptions: int  # attempts of these tasks that the infrastructure ended


@dataclass(frozen=True)
class StepRow:
    """One step of a rollout's plan. `age` is seconds since it was started."""

    seq: int
    action: str
    args: dict[str, Any]
    state: str
    detail: dict[str, Any]
    started_at: dt.datetime | None
    ended_at: dt.datetime | None
    age: float | None


@dataclass(frozen=True)
class RolloutRow:
    """A rollout as it stands. `error` while running: it failed or was aborted, and is being undone."""

    id: int
    role: str
    pool: str
    release: str
    strategy: str
    wish: dict[str, Any]
    state: str
    error: str | None
    driver: str | None
    driver_at: dt.datetime | None
    driver_age: float | None  # seconds
    created_by: str
    created_at: dt.datetime
    ended_at: dt.datetime | None


@dataclass(frozen=True)
class RolloutDetail(RolloutRow):
    """A rollout with its steps in order."""

    steps: list[StepRow] = field(default_factory=list)


@dataclass(frozen=True)
class Counts:
    """The numbers at the head of the overview. Finished runs are those created in the last 24 hours."""

    dags: int
    runs_running: int
    runs_failed_24h: int
    runs_success_24h: int
    tasks_ready: int
    tasks_queued: int
    tasks_running: int
    nodes: int
    nodes_live: int
    slots: int
