"""What people change by hand, over the API and with the pages' buttons: clear, mark, kill, fill a span."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from pydantic import AwareDatetime, BaseModel
from sqlalchemy import Connection

from runner.scheduler import backfill as plans
from runner.settings import UsageError
from runner.state import backfills, transitions
from runner.state.backfills import BackfillRow
from runner.web import api
from runner.web.context import Context, context_of

router = APIRouter()
Ctx = Annotated[Context, Depends(context_of)]
Mark = Literal["success", "failed", "skipped"]


class Clear(BaseModel):
    """Which tasks of a run run again: all of them without a list. `load[2]` is one item of a mapped task."""

    tasks: list[str] | None = None
    upstream: bool = False
    downstream: bool = True
    only_failed: bool = False


class MarkAs(BaseModel):
    """What tasks have become, whatever they have done."""

    tasks: list[str]
    state: Mark


class Kill(BaseModel):
    """Which tasks are to be ended; the whole run without a list."""

    tasks: list[str] | None = None


class Changed(BaseModel):
    """How many task instances it has changed."""

    task_instances: int


@router.post("/api/v1/runs/{run_id}/clear")
def clear(context: Ctx, run_id: int, wish: Clear | None = None) -> Changed:
    """Run tasks again; what runs is ended first."""
    return Changed(task_instances=_change(context, run_id, "clear", **(wish or Clear()).model_dump()))


@router.post("/api/v1/runs/{run_id}/mark")
def mark(context: Ctx, run_id: int, wish: MarkAs) -> Changed:
    """Say what tasks have become; what runs is ended first."""
    return Changed(task_instances=_change(context, run_id, "mark", tasks=wish.tasks, state=wish.state))


@router.post("/api/v1/runs/{run_id}/kill")
def kill(context: Ctx, run_id: int, wish: Kill | None = None) -> Changed:
    """End tasks, or a whole run: within a heartbeat they stop, and they have failed."""
    return Changed(task_instances=_change(context, run_id, "kill", tasks=(wish or Kill()).tasks))


def _change(context: Context, run_id: int, action: str, *, by: str = "api", **wish: Any) -> int:
    with context.engine.begin() as connection:
        api.require_run(connection, run_id, limit=0)
        changed = _do(connection, run_id, action, by, wish)
    context.cache.clear()
    return changed


def _do(connection: Connection, run_id: int, action: str, by: str, wish: dict[str, Any]) -> int:
    if action == "clear":
        return transitions.clear(connection, run_id, wish.pop("tasks", None), by=by, **wish)
    if action == "mark":
        return transitions.mark(connection, run_id, wish["tasks"], wish["state"], by=by)
    if wish.get("tasks") is None:
        return transitions.end_run(connection, run_id, why=f"killed by {by}")
    return transitions.mark(connection, run_id, wish["tasks"], "failed", by=by, only_unfinished=True)


class Span(BaseModel):
    """A span of past instants of a DAG, both ends included. tasks: a pattern such as `load*`."""

    start: AwareDatetime
    end: AwareDatetime
    which: plans.Which = "missing"
    max_active: int = 16
    reverse: bool = False
    tasks: str | None = None
    dry_run: bool = False


class Filed(BaseModel):
    """The backfill that was filed, None for a dry run or if there is nothing to run; `left` stay as they are."""

    backfill: int | None
    runs: int
    left: int


@router.post("/api/v1/dags/{dag_id}/backfills", status_code=201)
def backfill(context: Ctx, dag_id: str, span: Span) -> Filed:
    """Run a DAG for a span of past instants."""
    wish = plans.Wish(dag_id, **span.model_dump(exclude={"dry_run"}))
    return _fill(context, wish, by="api", dry_run=span.dry_run)


def _fill(context: Context, wish: plans.Wish, *, by: str, dry_run: bool = False) -> Filed:
    with context.engine.begin() as connection:
        api.require_dag(connection, wish.dag_id)
        planned = plans.plan(connection, wish)
        number = None if dry_run else plans.start(connection, wish, planned, by=by)
    context.cache.clear()
    return Filed(backfill=number, runs=len(planned.instants), left=planned.left)


@router.get("/api/v1/backfills")
def backfill_list(context: Ctx, dag_id: str | None = None) -> list[BackfillRow]:
    """The newest backfills and how far they are."""
    with context.engine.connect() as connection:
        return backfills.recent(connection, dag_id)


@router.post("/api/v1/backfills/{number}/{action}")
def backfill_switch(
    context: Ctx, number: int, action: Literal["pause", "resume", "cancel"], kill: bool = False
) -> BackfillRow:
    """Pause, resume or cancel one; `kill` also ends its runs under way."""
    return _switch(context, number, action, by="api", kill=kill)


def _switch(context: Context, number: int, action: str, *, by: str, kill: bool = False) -> BackfillRow:
    state = {"pause": "paused", "resume": "running", "cancel": "cancelled"}[action]
    with context.engine.begin() as connection:
        found = backfills.switch(connection, number, state, by=by, kill=kill)
    context.cache.clear()
    return found


@router.post("/dags/{dag_id}/backfill", include_in_schema=False)
async def fill(request: Request, context: Ctx, dag_id: str) -> Response:
    """The form of a DAG's page: two dates in its zone, and which of the instants between."""
    body = await _form(request)
    return await run_in_threadpool(_fill_from_form, request, context, dag_id, body)


def _fill_from_form(request: Request, context: Context, dag_id: str, body: dict[str, str]) -> Response:
    with context.engine.connect() as connection:
        zone = ZoneInfo(api.require_dag(connection, dag_id).timezone)
    try:
        first, last = (dt.date.fromisoformat(body.get(name, "")) for name in ("from", "to"))
    except ValueError:
        raise UsageError("a backfill needs two dates", "e.g. 2026-01-01 and 2026-01-31") from None
    which = body.get("which", "missing")
    if which not in ("missing", "failed", "all"):
        raise UsageError(f"{which!r} is none of missing, failed, all")
    start = dt.datetime.combine(first, dt.time(), zone).astimezone(dt.UTC)
    end = dt.datetime.combine(last + dt.timedelta(days=1), dt.time(), zone).astimezone(dt.UTC)
    wish = plans.Wish(dag_id, start, end - dt.timedelta(microseconds=1), which)  # type: ignore[arg-type]
    _fill(context, wish, by="web")
    return _back(request, body)


@router.post("/backfills/{number}/{action}", include_in_schema=False)
async def switch(request: Request, context: Ctx, number: int, action: str) -> Response:
    """The buttons of a backfill."""
    body = await _form(request)
    if action not in ("pause", "resume", "cancel"):
        raise UsageError(f"{action!r} is none of pause, resume, cancel")
    await run_in_threadpool(_switch, context, number, action, by="web")
    return _back(request, body)


async def _form(request: Request) -> dict[str, str]:
    return {k: v[-1] for k, v in parse_qs((await request.body()).decode(errors="replace")).items()}


def _back(request: Request, body: dict[str, str]) -> Response:
    if "hx-request" in request.headers:
        return Response(headers={"HX-Trigger": "refresh"})
    return RedirectResponse(api.local_path(body.get("back", "")), status_code=303)


@router.post("/runs/{run_id}/{action}", include_in_schema=False)
async def act(request: Request, context: Ctx, run_id: int, action: str) -> Response:
    """The buttons of a run and of a task. They work without scripts as well."""
    body = await _form(request)
    wishes: dict[str, dict[str, Any]] = {
        "clear": {},
        "retry": {"only_failed": True},
        "kill": {},
        "success": {"state": "success"},
    }
    if action not in wishes or (action == "success" and "task" not in body):
        raise UsageError(f"{action!r} is none of {', '.join(wishes)}")
    wish = wishes[action]
    if "task" in body:
        wish["tasks"] = [body["task"]]
    verb = {"retry": "clear", "success": "mark"}.get(action, action)
    await run_in_threadpool(_change, context, run_id, verb, by="web", **wish)
    return _back(request, body)
