"""The REST API, /api/v1: what the pages show, as JSON, and the few things they change."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime, BaseModel
from sqlalchemy import Connection

from runner.settings import SluiceError
from runner.state import assets, queries, transitions
from runner.state import dags as dag_switches
from runner.state import history as changes
from runner.state import params as run_params
from runner.state import rollouts as rollout_state
from runner.state.assets import AssetRow
from runner.state.history import Change
from runner.state.queries import (
    Counts,
    DagDetail,
    DagRow,
    EventRow,
    NodeRow,
    QueueRow,
    RunDetail,
    RunRow,
    TaskDetail,
)
from runner.state.views import RolloutDetail
from runner.storage import log_prefix, read_log
from runner.web.context import Context, context_of
from runner.web.errors import ConflictError, ErrorBody, NotFoundError

router = APIRouter(
    prefix="/api/v1",
    responses={
        404: {"model": ErrorBody, "description": "There is nothing under this id"},
        422: {"model": ErrorBody, "description": "The request is malformed"},
        503: {"model": ErrorBody, "description": "The database does not answer"},
    },
)

Ctx = Annotated[Context, Depends(context_of)]
Limit = Annotated[int, Query(ge=1, le=1000)]
RunState = Literal["queued", "running", "success", "failed"]
TaskState = Literal[
    "waiting",
    "ready",
    "queued",
    "running",
    "deferred",
    "up_for_retry",
    "expanded",
    "success",
    "failed",
    "skipped",
    "upstream_failed",
]


class Trigger(BaseModel):
    """A run wished for. Without a logical date it is now."""

    logical_date: AwareDatetime | None = None
    params: dict[str, Any] = {}


class Triggered(BaseModel):
    """The run that was created."""

    run_id: int


class Paused(BaseModel):
    """Whether a DAG's schedule is off."""

    dag_id: str
    paused: bool


@dataclass(frozen=True)
class LogPart:
    """A piece of a task's log. Ask again from `next` for what comes later; `complete` says nothing will."""

    attempt: int
    text: str
    next: int
    complete: bool


# --- what both the API and the pages do -------------------------------------------------------------------------


def require_dag(connection: Connection, dag_id: str) -> DagDetail:
    """The DAG. Raises NotFoundError."""
    found = queries.dag(connection, dag_id)
    if found is None:
        raise NotFoundError(f"no DAG {dag_id!r}", "`runner dag list` shows what there is")
    return found


def trigger(context: Context, dag_id: str, wish: Trigger) -> int:
    """Create a run by hand; its id. Raises NotFoundError, or ConflictError for a date that has its run already."""
    date = wish.logical_date or dt.datetime.now(dt.UTC)
    with context.engine.begin() as connection:
        found = require_dag(connection, dag_id)
        if not found.active:
            raise ConflictError(f"DAG {dag_id!r} is no longer in its bundle {found.bundle!r}", "publish it again")
        run_params.check(connection, dag_id, wish.params)
        run_id = transitions.create_run(connection, dag_id, date, params=wish.params)
    if run_id is None:
        raise ConflictError(f"DAG {dag_id!r} has a run of {date.isoformat()} already", "choose another logical date")
    context.cache.clear()
    return run_id


def set_paused(context: Context, dag_id: str, paused: bool, by: str) -> None:
    """Pause or resume a DAG's schedule. Raises NotFoundError."""
    with context.engine.begin() as connection:
        if not dag_switches.set_paused(connection, dag_id, paused, by=by):
            raise NotFoundError(f"no DAG {dag_id!r}", "`runner dag list` shows what there is")
    context.cache.clear()


def read_task_log(context: Context, task: TaskDetail, attempt: int | None, start: int) -> LogPart:
    """A piece of the log of an attempt, the last one unless said otherwise."""
    storage = context.storage()
    if storage is None:
        raise SluiceError("logs are kept nowhere", "set SLUICE_STORAGE_URL for the web process")
    number = task.attempt if attempt is None else attempt
    # Asked before reading: what a task writes after this is there with the next call.
    over = number < task.attempt or task.state not in ("running", "queued")
    text, following = read_log(
        storage, log_prefix(task.dag_id, task.run_id, task.task_id, number, task.map_index), start
    )
    return LogPart(number, text, following, over and not text)


def require_task(connection: Connection, task_id: int) -> TaskDetail:
    """The task instance. Raises NotFoundError."""
    found = queries.task_instance(connection, task_id)
    if found is None:
        raise NotFoundError(f"no task instance {task_id}", "`runner run show RUN` lists a run's tasks")
    return found


def require_run(connection: Connection, run_id: int, **options: Any) -> RunDetail:
    """The run. Raises NotFoundError."""
    found = queries.run(connection, run_id, **options)
    if found is None:
        raise NotFoundError(f"no run {run_id}", "`runner run list` shows the last ones")
    return found


def local_path(back: str) -> str:
    """Where a form wants to go back to, if that is a page of ours; else the first page."""
    return back if back.startswith("/") and not back.startswith(("//", "/\\")) else "/"


# --- the routes ---------------------------------------------------------------------------------------------------


@router.get("/counts")
def counts(context: Ctx) -> Counts:
    """How much is going on now."""
    with context.engine.connect() as connection:
        return queries.counts(connection)


@router.get("/dags")
def dags(
    context: Ctx, search: str | None = None, inactive: bool = False, after: str = "", limit: Limit = 200
) -> list[DagRow]:
    """DAGs by id, each with its last runs. For the next page pass the last id as `after`."""
    with context.engine.connect() as connection:
        return queries.dags(connection, active_only=not inactive, search=search, after=after, limit=limit)


@router.get("/dags/{dag_id}")
def dag(context: Ctx, dag_id: str) -> DagDetail:
    """One DAG with its spec."""
    with context.engine.connect() as connection:
        return require_dag(connection, dag_id)


@router.get("/dags/{dag_id}/runs")
def dag_runs(
    context: Ctx, dag_id: str, state: RunState | None = None, before_id: int | None = None, limit: Limit = 50
) -> list[RunRow]:
    """A DAG's runs by logical date, newest first. For the next page pass the last id as `before_id`."""
    with context.engine.connect() as connection:
        require_dag(connection, dag_id)
        return queries.runs(connection, dag_id, state, before_id=before_id, limit=limit)


@router.post(
    "/dags/{dag_id}/runs",
    status_code=201,
    responses={409: {"model": ErrorBody, "description": "The DAG has a run of this logical date"}},
)
def trigger_run(context: Ctx, dag_id: str, wish: Trigger | None = None) -> Triggered:
    """Create a run by hand."""
    return Triggered(run_id=trigger(context, dag_id, wish or Trigger()))


class AssetUpdate(BaseModel):
    """Something outside has updated an asset; `extra` is shown to the runs that follow."""

    asset: str
    extra: dict[str, Any] = {}


class AssetUpdated(BaseModel):
    """How many DAGs wait for it."""

    waiting: int


@router.get("/assets")
def asset_rows(context: Ctx) -> list[AssetRow]:
    """All assets of active DAGs."""
    with context.engine.connect() as connection:
        return assets.known(connection)


@router.post("/assets/events", status_code=201)
def update_asset(context: Ctx, wish: AssetUpdate) -> AssetUpdated:
    """Say that something outside has updated an asset."""
    with context.engine.begin() as connection:
        return AssetUpdated(waiting=assets.update(connection, wish.asset, extra=wish.extra, who="api"))


@router.post("/dags/{dag_id}/pause")
def pause(context: Ctx, dag_id: str) -> Paused:
    """Create no scheduled runs; those under way go on."""
    set_paused(context, dag_id, True, by="api")
    return Paused(dag_id=dag_id, paused=True)


@router.post("/dags/{dag_id}/unpause")
def unpause(context: Ctx, dag_id: str) -> Paused:
    """Create scheduled runs again."""
    set_paused(context, dag_id, False, by="api")
    return Paused(dag_id=dag_id, paused=False)


@router.get("/runs")
def runs(
    context: Ctx,
    dag_id: str | None = None,
    state: RunState | None = None,
    before_id: int | None = None,
    limit: Limit = 50,
) -> list[RunRow]:
    """The last runs, newest first. For the next page pass the last id as `before_id`."""
    with context.engine.connect() as connection:
        return queries.runs(connection, dag_id, state, before_id=before_id, limit=limit)


@router.get("/runs/{run_id}")
def run(
    context: Ctx,
    run_id: int,
    state: Annotated[list[TaskState] | None, Query(description="only task instances in these states")] = None,
    limit: Annotated[int, Query(ge=0, le=10_000)] = 1000,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> RunDetail:
    """One run with its task instances, those that need a person first."""
    with context.engine.connect() as connection:
        return require_run(connection, run_id, states=state, limit=limit, offset=offset)


@router.get("/tasks/{task_instance_id}")
def task(context: Ctx, task_instance_id: int) -> TaskDetail:
    """One task instance with its history."""
    with context.engine.connect() as connection:
        return require_task(connection, task_instance_id)


@router.get("/tasks/{task_instance_id}/log", responses={502: {"model": ErrorBody}})
def task_log(
    context: Ctx,
    task_instance_id: int,
    attempt: Annotated[int | None, Query(ge=0, description="the last one if not given")] = None,
    start: Annotated[int, Query(alias="from", ge=0, description="`next` of the answer before")] = 0,
) -> LogPart:
    """A task's log, also while it runs: ask again from `next` until `complete`."""
    with context.engine.connect() as connection:
        found = require_task(connection, task_instance_id)
    return read_task_log(context, found, attempt, start)


@router.get("/fleet")
def fleet(context: Ctx) -> list[NodeRow]:
    """All nodes that are not gone."""
    with context.engine.connect() as connection:
        return queries.fleet(connection)


@router.get("/queues")
def queue_rows(context: Ctx) -> list[QueueRow]:
    """All queues that hold work or that a live worker consumes."""
    with context.engine.connect() as connection:
        return queries.queues(connection)


@router.get("/rollouts")
def rollouts(
    context: Ctx, before_id: int | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> list[RolloutDetail]:
    """The last rollouts with their steps, newest first. For the next page pass the last id as `before_id`."""
    with context.engine.connect() as connection:
        return rollout_state.recent(connection, limit, before_id=before_id)


@router.get("/history")
def history(context: Ctx, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> list[Change]:
    """What was changed, newest first: pipeline code and releases, with what became of the tasks meanwhile."""
    with context.engine.connect() as connection:
        return changes.recent(connection, limit)


@router.get("/events")
def events(
    context: Ctx,
    after_id: Annotated[int | None, Query(description="in order from here on; without it the newest first")] = None,
    before_id: int | None = None,
    limit: Limit = 100,
) -> list[EventRow]:
    """Events: from `after_id` on in order, or the newest ones first."""
    with context.engine.connect() as connection:
        if after_id is not None:
            return queries.events(connection, after_id, limit)
        return queries.last_events(connection, limit, before_id)


@router.get(
    "/stream",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Server-Sent Events until either side ends"}},
)
async def stream(
    request: Request,
    kind: Annotated[list[str] | None, Query(description="task, run, node, rollout, dag; all if not given")] = None,
    run_id: Annotated[list[int] | None, Query(description="everything of these runs")] = None,
    task_id: Annotated[list[int] | None, Query(description="everything of these task instances")] = None,
    brief: Annotated[bool, Query(description="only say what kinds changed")] = False,
    every: Annotated[float, Query(ge=0, le=60, description="at most one message in so many seconds")] = 0,
    tick: Annotated[float | None, Query(ge=1, le=60, description="brief only: a message after so much silence")] = None,
    last_event_id: Annotated[int | None, Header()] = None,
) -> StreamingResponse:
    """Events as they happen: `events` with a JSON array, `reset` when some were lost.

    A client that reconnects with `Last-Event-ID` gets what it missed, or a `reset`. With `brief` there are only
    `changed` messages, which say that it is worth looking again.
    """
    context = context_of(request)
    if context.hub.full:
        raise SluiceError("too many open streams", "close some pages")
    topics = {*(kind or ()), *(f"run:{r}" for r in run_id or ()), *(f"task:{t}" for t in task_id or ())} or {"*"}
    body = context.hub.stream(
        frozenset(topics), brief=brief, every_seconds=every, tick_seconds=tick, last_event_id=last_event_id
    )
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(body, media_type="text/event-stream", headers=headers)
