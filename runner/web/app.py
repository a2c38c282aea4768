"""The application: API, pages, static files, health, metrics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from runner.settings import Settings
from runner.state import db
from runner.telemetry import metrics
from runner.web import api, by_hand, errors, pages
from runner.web.context import Context
from runner.web.live import Hub

HERE = Path(__file__).parent
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def create(settings: Settings, *, poll_seconds: float = 1.0) -> FastAPI:
    """The web application for these settings. Raises UsageError without a database URL.

    The database is not asked for anything before the first request; while it is away, /health answers 503 and
    everything else says so.
    """
    engine = db.connect(settings.database(), application_name="sluice-web", pool_timeout=10)
    context = Context(settings, engine, Hub(engine, poll_seconds=poll_seconds))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        poller = asyncio.create_task(context.hub.run(), name="events")
        try:
            yield
        finally:
            context.hub.close()
            await poller
            engine.dispose()

    app = FastAPI(
        title="Sluice",
        summary="DAGs, runs, tasks and the fleet",
        version="1",
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        docs_url=None,  # they load scripts from elsewhere, which our pages never do
        redoc_url=None,
    )
    app.state.context = context
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=5)
    errors.install(app, pages.templates, loopback_only=settings.web_host in _LOOPBACK)
    app.include_router(api.router)
    app.include_router(by_hand.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")

    @app.get("/health", response_model=None)
    def health() -> JSONResponse:
        """200 while the process works and reaches the database, 503 while the database is away."""
        status = {"status": "ok", "database": "ok", "release": settings.release, "env": settings.env}
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except SQLAlchemyError as e:
            away = {"status": "degraded", "database": str(e).splitlines()[0]}
            return JSONResponse({**status, **away}, status_code=503)
        return JSONResponse(status)

    registry = metrics.registry(engine, release=settings.release, env=settings.env)

    # The checks of every other request hold here too: it changes nothing, and a page of another site that made a
    # browser's name for this machine its own may not read it.
    @app.get("/metrics", include_in_schema=False)
    def prometheus(request: Request) -> Response:
        """What Prometheus scrapes."""
        body, content_type = metrics.render(registry, request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    return app
