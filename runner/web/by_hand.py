"""What people change by hand, over the API and with the pages' buttons: clear, mark, kill."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel
from sqlalchemy import Connection

from runner.settings import UsageError
from runner.state import transitions
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


@router.post("/runs/{run_id}/{action}", include_in_schema=False)
async def act(request: Request, context: Ctx, run_id: int, action: str) -> Response:
    """The buttons of a run and of a task. They work without scripts as well."""
    body = {k: v[-1] for k, v in parse_qs((await request.body()).decode(errors="replace")).items()}
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
    if "hx-request" in request.headers:
        return Response(headers={"HX-Trigger": "refresh"})
    return RedirectResponse(api.local_path(body.get("back", "")), status_code=303)
