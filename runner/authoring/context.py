"""What a running task knows about its run: who it is, which time it stands for, where its files go."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.storage import Storage

_TIMES = ("logical_date", "interval_start", "interval_end")
_ALL_TIMES = (*_TIMES, "waiting_since")


@dataclass(frozen=True, kw_only=True)
class Context:
    """The running task instance.

    `try_number` counts from 1 and rises only with failures that used up a retry; `attempt` counts every time
    the task was handed to a worker, interruptions included. Times are aware. `logical_date` is the scheduled
    instant; the data interval is [interval_start, interval_end). `map_index` is the number of an item of a mapped
    task, -1 elsewhere. `run_type` says what made the run: scheduled, manual, backfill, asset or heartbeat.
    `waiting_since`: of a task that has deferred itself, when it first ran.
    `triggers`: of a run made by assets, the events that made it.
    """

    dag_id: str
    run_id: str
    task_id: str
    logical_date: dt.datetime
    interval_start: dt.datetime = None  # type: ignore[assignment]  # defaults to logical_date
    interval_end: dt.datetime = None  # type: ignore[assignment]  # defaults to logical_date
    map_index: int = -1
    run_type: str = "manual"
    try_number: int = 1
    attempt: int = 1
    params: dict[str, Any] = field(default_factory=dict)
    node: str = ""
    release: str = ""
    bundle_version: str = ""
    log_url: str = ""
    storage_url: str = ""
    artifacts_url: str = ""
    waiting_since: dt.datetime | None = None
    triggers: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in _TIMES:
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, self.logical_date)
            elif value.tzinfo is None:
                raise ValueError(f"{name} must have a time zone, not {value.isoformat()}")

    @property
    def storage(self) -> Storage:
        """The files of all pipelines, under `files/` of the environment's storage. Raises RuntimeError without one."""
        from runner.storage import Storage

        if not self.storage_url:
            raise RuntimeError("this task has no storage: give DAG.test() or the Context a storage_url")
        return Storage.open(f"{self.storage_url.rstrip('/')}/files")

    def environment(self) -> dict[str, str]:
        """What is not Python gets this much of it, as environment variables. Times as ISO 8601."""
        return {
            "SLUICE_DAG_ID": self.dag_id,
            "SLUICE_RUN_ID": self.run_id,
            "SLUICE_TASK_ID": self.task_id,
            "SLUICE_TRY_NUMBER": str(self.try_number),
            "SLUICE_ATTEMPT": str(self.attempt),
            **{f"SLUICE_{name.upper()}": getattr(self, name).isoformat() for name in _TIMES},
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; times as ISO 8601."""
        out = dict(vars(self))  # not asdict: it copies every value, for every task
        for name in _ALL_TIMES:
            out[name] = out[name] and out[name].isoformat()
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Context:
        """The inverse of `to_json`. Keys this release does not know are left out."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: v for k, v in data.items() if k in known}
        for name in _ALL_TIMES:
            if isinstance(values.get(name), str):
                values[name] = dt.datetime.fromisoformat(values[name])
        return cls(**values)


_current: contextvars.ContextVar[Context] = contextvars.ContextVar("sluice_task_context")


def get_current_context() -> Context:
    """The context of the task that is running. Raises LookupError outside of one."""
    try:
        return _current.get()
    except LookupError:
        raise LookupError("no task is running: get_current_context() works inside a task function only") from None


@contextlib.contextmanager
def running(context: Context) -> Iterator[None]:
    """Make `context` the current one for the length of the block."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
