"""What goes into the transitions and comes out of them, and which of them are legal."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, text

from runner.state.db import CHANNEL

Result = Literal["success", "failed", "skipped", "interrupted", "deferred"]
Lease = tuple[uuid.UUID, dt.datetime]

_MARKED = frozenset({"success", "failed", "skipped"})
_BY_HAND = _MARKED | {"waiting"}  # whatever has no process can be marked by a person, or sent back to wait

# The state a task instance is in → those it may enter next. What is cleared waits; an item of a mapped task, which
# waits for nothing, is ready at once, and what stands for items that are kept is expanded.
LEGAL: dict[str, frozenset[str]] = {
    "waiting": _MARKED | {"ready", "deferred", "expanded", "upstream_failed"},
    "ready": _BY_HAND | {"queued", "running"},
    "queued": _BY_HAND | {"running", "ready"},
    "running": _BY_HAND | {"ready", "up_for_retry"},
    "up_for_retry": _BY_HAND | {"ready"},
    "deferred": _BY_HAND,
    "expanded": _BY_HAND,
    "upstream_failed": _BY_HAND,
    **{state: _BY_HAND - {state} | {"ready", "expanded"} for state in _MARKED},
}


@dataclass(frozen=True)
class Message:
    """What goes to the broker: no code, no data, only which attempt of which task instance is due."""

    task_instance: int
    attempt: int
    queue: str


@dataclass(frozen=True)
class Claim:
    """A task instance this node may now run, until its lease ends.

    inputs: upstream task → what it returned; a value that is kept in storage is {REFERENCE: its URL}. items: of an
    item of a mapped task, argument → {"index": n} of a list of the pipeline's text, or {"value": the element}.
    execution: see authoring.spec.TaskSpec.
    waiting_since: of one that has deferred itself, when it first ran. triggers: asset events that made
    its run.
    """

    task_instance: int
    attempt: int
    token: uuid.UUID
    run_id: int
    dag_id: str
    task_id: str
    map_index: int
    bundle_version: str
    try_number: int
    interruptions: int
    timeout_seconds: float | None
    run_type: str
    logical_date: dt.datetime
    interval_start: dt.datetime
    interval_end: dt.datetime
    params: dict[str, Any]
    execution: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    items: dict[str, Any] = field(default_factory=dict)
    waiting_since: dt.datetime | None = None
    triggers: list[dict[str, Any]] = field(default_factory=list)


REFERENCE = "sluice:reference"


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. `value` is the return value as JSON text, `error` one line for people.

    url, length: instead of a value, where it is in storage, and of a list how many items it has. retry False on a
    failure says that trying again is pointless. interrupted: the infrastructure ended the attempt, it goes back to
    ready and no retry is used up. deferred: it wants to be started again after `delay_seconds`; no retry is used
    up. skip: downstream tasks that a branch left out. expires: refuse the outcome unless the lease still ends then.
    """

    task_instance: int
    token: uuid.UUID
    result: Result
    value: str | None = None
    error: str | None = None
    retry: bool = True
    url: str | None = None
    length: int | None = None
    delay_seconds: float = 0.0
    skip: tuple[str, ...] = ()
    expires: dt.datetime | None = None


def notify(connection: Connection) -> None:
    """Wake the schedulers when this transaction commits. Repeated in one transaction it costs nothing more."""
    connection.execute(text(f"SELECT pg_notify('{CHANNEL}', '')"))
