"""Every error as {error, hint}, or as a page for a browser; and the checks before a request may change something."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.templating import Jinja2Templates
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from runner.settings import RefusedError, SluiceError, UsageError

log = structlog.get_logger("web")

# No script, style, frame or font but our own: what a pipeline's author writes can never run here.
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class ErrorBody(BaseModel):
    """What every failed call answers."""

    error: str
    hint: str = ""


class NotFoundError(SluiceError):
    """There is nothing under this id."""


class ConflictError(SluiceError):
    """The request contradicts what is there."""


def install(app: FastAPI, templates: Jinja2Templates, *, loopback_only: bool) -> None:
    """Answer errors in one form and put the checks in front of every request."""

    def answer(request: Request, status: int, message: str, hint: str = "") -> Response:
        path = request.url.path
        # htmx keeps the page and shows the message above it.
        scripted = "hx-request" in request.headers or path.startswith(("/api/", "/health", "/metrics"))
        if not scripted and "text/html" in request.headers.get("accept", ""):
            context = {"status": status, "message": message, "hint": hint, "layout": "base.html"}
            html = templates.TemplateResponse(request, "error.html", context, status_code=status)
            return HTMLResponse(html.body, status_code=status)
        return JSONResponse({"error": message, "hint": hint}, status_code=status)

    @app.exception_handler(SluiceError)
    async def ours(request: Request, e: SluiceError) -> Response:
        status = (
            404
            if isinstance(e, NotFoundError)
            else 409
            if isinstance(e, (ConflictError, RefusedError))
            else 400
            if isinstance(e, UsageError)
            else 502
        )
        return answer(request, status, e.message, e.hint)

    @app.exception_handler(HTTPException)
    async def http(request: Request, e: HTTPException) -> Response:
        if e.status_code == 404:
            return answer(request, 404, f"there is no page {request.url.path}", "start from /")
        return answer(request, e.status_code, str(e.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, e: RequestValidationError) -> Response:
        first = e.errors()[0]
        where = ".".join(str(x) for x in first["loc"] if x not in ("body", "query", "path"))
        return answer(request, 422, f"{where or 'body'}: {first['msg']}", "see /api/openapi.json")

    async def away(request: Request, e: Exception) -> Response:
        if isinstance(e, DBAPIError) and not isinstance(e, (OperationalError, InterfaceError)):
            log.error("web.failed", path=request.url.path, exc_info=e)
            return answer(request, 500, "the server failed", "see the web process's log")
        log.warning("web.database_away", error=str(e).splitlines()[0])
        return answer(request, 503, "the database does not answer", "running tasks go on; try again in a moment")

    app.add_exception_handler(DBAPIError, away)
    app.add_exception_handler(PoolTimeoutError, away)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _refuse(request, loopback_only)
        if refused:
            response = answer(request, 403, *refused)
        else:
            try:
                response = await call_next(request)
            except Exception as e:
                log.error("web.failed", path=request.url.path, exc_info=e)
                response = answer(request, 500, "the server failed", "see the web process's log")
        for name, value in _HEADERS.items():
            response.headers[name] = value
        if not request.url.path.startswith("/static/"):
            response.headers.setdefault("Cache-Control", "no-store")
            response.headers["Vary"] = "HX-Request"
        return response


def _refuse(request: Request, loopback_only: bool) -> tuple[str, str] | None:
    """Why this request may not go on: another site's page made it, in the browser of somebody who may reach us."""
    host = request.headers.get("host", "")
    if loopback_only and (urlsplit(f"//{host}").hostname or "") not in _LOOPBACK:
        # A name that was made to point at 127.0.0.1: to the browser it is the attacker's own site.
        return f"this server answers on this machine only, not as {host!r}", "open it as http://127.0.0.1"
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return None
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    foreign = site not in (None, "same-origin", "none") or (origin is not None and urlsplit(origin).netloc != host)
    if foreign:
        return "a page of another site may not change anything here", "use this server's own pages or its API"
    json = request.headers.get("content-type", "").startswith("application/json")
    if site is None and origin is None and not json and "x-sluice-client" not in request.headers:
        return (
            "cannot tell where this request comes from",
            "send `Content-Type: application/json` or an `X-Sluice-Client` header",
        )
    return None
