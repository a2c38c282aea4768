"""The pages. Each is rendered whole for a browser and, for htmx, as its inner part alone, from the same template."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.templating import Jinja2Templates
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from runner.settings import UsageError
from runner.state import backfills, queries, rollouts
from runner.state import history as changes
from runner.state.models import TASK_STATES
from runner.web import api, graph, present
from runner.web.context import Context, context_of
from runner.web.errors import NotFoundError

router = APIRouter(include_in_schema=False)
templates = Jinja2Templates(directory=Path(__file__).parent / "templates")
present.install(templates.env)

Ctx = Annotated[Context, Depends(context_of)]
TASKS_PER_PAGE = 200
RUNS_PER_PAGE = 50


def _page(
    request: Request, context: Context, template: str, load: Callable[[Connection], dict[str, Any]]
) -> HTMLResponse:
    """Render a page from what `load` reads, or take it from the cache."""
    partial = "hx-request" in request.headers and "hx-history-restore-request" not in request.headers
    url = request.url.path + (f"?{request.url.query}" if request.url.query else "")

    def make() -> str:
        with context.engine.connect() as connection:
            values = load(connection)
        values |= {
            "layout": "part.html" if partial else "base.html",
            "url": url,
            "env": context.settings.env,
            "now": dt.datetime.now(dt.UTC),
        }
        return templates.get_template(template).render(values, request=request)

    key = f"{'part' if partial else 'page'} {url}"
    return HTMLResponse(context.cache.get(key, context.hub.version, make))


@router.get("/")
def overview(request: Request, context: Ctx, q: str = "", after: str = "") -> HTMLResponse:
    """DAGs, what is going on, and the fleet in one line."""

    def load(connection: Connection) -> dict[str, Any]:
        dags = queries.dags(connection, search=q or None, after=after, limit=100)
        return {
            "dags": dags,
            "counts": queries.counts(connection),
            "nodes": queries.fleet(connection),
            "queues": queries.queues(connection),
            "rollouts": [r for r in rollouts.recent(connection, 5) if r.state == "running"],
            "q": q,
            "after": after,
            "next_after": dags[-1].dag_id if len(dags) == 100 else "",
        }

    return _page(request, context, "overview.html", load)


@router.get("/dags/{dag_id}")
def dag(request: Request, context: Ctx, dag_id: str, before: int | None = None) -> HTMLResponse:
    """One DAG: its graph and its runs."""

    def load(connection: Connection) -> dict[str, Any]:
        found = api.require_dag(connection, dag_id)
        runs = queries.runs(connection, dag_id, before_id=before, limit=25)
        return {
            "dag": found,
            "runs": runs,
            "next_before": runs[-1].id if len(runs) == 25 else None,
            "slowest": max((r.seconds for r in runs), default=1.0) or 1.0,
            "backfills": backfills.recent(connection, dag_id, limit=5),
            "drawing": graph.draw(_upstream(context, connection, dag_id, found.bundle_version)),
        }

    return _page(request, context, "dag.html", load)


@router.get("/runs")
def runs(
    request: Request, context: Ctx, state: api.RunState | None = None, dag: str = "", before: int | None = None
) -> HTMLResponse:
    """The last runs of all DAGs."""

    def load(connection: Connection) -> dict[str, Any]:
        found = queries.runs(connection, dag or None, state, before_id=before, limit=RUNS_PER_PAGE)
        return {
            "runs": found,
            "state": state,
            "dag_id": dag,
            "slowest": max((r.seconds for r in found), default=1.0) or 1.0,
            "next_before": found[-1].id if len(found) == RUNS_PER_PAGE else None,
        }

    return _page(request, context, "runs.html", load)


@router.get("/runs/{run_id}")
def run(request: Request, context: Ctx, run_id: int, state: api.TaskState | None = None, page: int = 1) -> HTMLResponse:
    """One run: its tasks with state, tries, node and time."""
    offset = max(page - 1, 0) * TASKS_PER_PAGE

    def load(connection: Connection) -> dict[str, Any]:
        found = api.require_run(
            connection, run_id, states=[state] if state else None, limit=TASKS_PER_PAGE, offset=offset
        )
        upstream = _upstream(context, connection, found.dag_id, found.bundle_version)
        shown = found.counts.get(state, 0) if state else sum(found.counts.values())
        return {
            "run": found,
            "state": state,
            "states": [s for s in TASK_STATES if s in found.counts],
            "page": max(page, 1),
            "pages": -(-shown // TASKS_PER_PAGE),
            "shown": shown,
            "drawing": graph.draw(upstream, queries.task_states(connection, run_id)),
            "gantt": present.Gantt(found.created_at, found.ended_at or dt.datetime.now(dt.UTC)),
        }

    return _page(request, context, "run.html", load)


@router.get("/tasks/{task_instance_id}")
def task(request: Request, context: Ctx, task_instance_id: int, attempt: int | None = None) -> HTMLResponse:
    """One task instance: its attempts, its events and its log."""

    def load(connection: Connection) -> dict[str, Any]:
        found = api.require_task(connection, task_instance_id)
        upstream = _upstream(context, connection, found.dag_id, found.bundle_version)
        return {
            "task": found,
            "attempts": present.attempts(found.events),
            "attempt": found.attempt if attempt is None else attempt,
            "upstream": upstream.get(found.task_id, ()),
            "downstream": sorted(t for t, ups in upstream.items() if found.task_id in ups),
        }

    return _page(request, context, "task.html", load)


@router.get("/runs/{run_id}/tasks/{task_id}")
def task_by_name(context: Ctx, run_id: int, task_id: str) -> RedirectResponse:
    """A task of a run by its name."""
    with context.engine.connect() as connection:
        found = queries.task_of(connection, run_id, task_id)
    if found is None:
        raise NotFoundError(f"run {run_id} has no task {task_id!r}", f"see /runs/{run_id}")
    return RedirectResponse(f"/tasks/{found}", status_code=302)


@router.get("/fleet")
def fleet(request: Request, context: Ctx) -> HTMLResponse:
    """Nodes by pool, queues, rollouts."""

    def load(connection: Connection) -> dict[str, Any]:
        return {
            "nodes": queries.fleet(connection),
            "queues": queries.queues(connection),
            "rollouts": rollouts.recent(connection, 10),
        }

    return _page(request, context, "fleet.html", load)


@router.get("/history")
def history(request: Request, context: Ctx) -> HTMLResponse:
    """What was changed, by whom, and what became of the tasks."""
    return _page(request, context, "history.html", lambda connection: {"changes": changes.recent(connection, 50)})


@router.post("/dags/{dag_id}/{action}")
async def act(request: Request, context: Ctx, dag_id: str, action: str) -> Response:
    """The buttons: pause, unpause, trigger. They work without scripts as well."""
    body = {k: v[-1] for k, v in parse_qs((await request.body()).decode(errors="replace")).items()}
    back = api.local_path(body.get("back", "/"))
    return await run_in_threadpool(_act, request, context, dag_id, action, back)


def _act(request: Request, context: Context, dag_id: str, action: str, back: str) -> Response:
    with_htmx = "hx-request" in request.headers
    if action == "trigger":
        target = f"/runs/{api.trigger(context, dag_id, api.Trigger())}"
        if with_htmx:
            return Response(headers={"HX-Redirect": target})
        return RedirectResponse(target, status_code=303)
    if action not in ("pause", "unpause"):
        raise UsageError(f"{action!r} is neither pause, unpause nor trigger")
    api.set_paused(context, dag_id, action == "pause", by="web")
    if with_htmx:
        return Response(headers={"HX-Trigger": "refresh"})
    return RedirectResponse(back, status_code=303)


def _upstream(context: Context, connection: Connection, dag_id: str, version: str) -> dict[str, tuple[str, ...]]:
    """Upstream tasks of each task of a DAG version; read once, because a version never changes."""
    key = (dag_id, version)
    known = context.graphs.get(key)
    if known is None:
        spec = queries.spec(connection, dag_id, version) or {}
        known = {t["task_id"]: tuple(t.get("upstream", ())) for t in spec.get("tasks", ())}
        if len(context.graphs) >= 200:
            context.graphs.clear()
        context.graphs[key] = known
    return known
