"""The web process: serve until TERM, and be a node of the fleet meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
from sqlalchemy import Engine

from runner.settings import Settings, SluiceError
from runner.state import nodes
from runner.telemetry import systemd
from runner.web.app import create
from runner.web.context import Context

log = structlog.get_logger("web")

_GRACE_SECONDS = 1  # for requests under way when told to stop


def run(settings: Settings) -> int:
    """Serve until TERM or INT; 0 after a graceful end. Raises SluiceError if the address cannot be bound.

    The port it really took is in `<home>/web.port` while it runs.
    """
    app = create(settings)
    context: Context = app.state.context
    listener = _bind(settings.web_host, settings.web_port)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = _Server(config, context)
    with listener, _signals_end(server), _port_file(settings.home / "web.port", port):
        stop = threading.Event()
        beat = None
        if settings.node_id:
            address = f"{settings.web_host}:{port}"
            beat = threading.Thread(
                target=_be_a_node, args=(settings, context.engine, address, stop), name="heartbeat", daemon=True
            )
            beat.start()
        log.info("web.started", url=f"http://{settings.web_host}:{port}/")
        try:
            server.run(sockets=[listener])
        finally:
            stop.set()
            if beat:
                beat.join(timeout=0.5)
        log.info("web.stopped")
    return 0 if server.started or server.told_to_stop else 1


class _Server(uvicorn.Server):
    """Ends the open streams as soon as it is told to stop; the server itself would wait for them."""

    def __init__(self, config: uvicorn.Config, context: Context) -> None:
        super().__init__(config)
        self._context = context
        self._loop: asyncio.AbstractEventLoop | None = None
        self.told_to_stop = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, then tell the service manager."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        systemd.notify("READY=1")

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn's, ten times a second, and tell the service manager that the event loop turns."""
        if counter % 20 == 0:
            systemd.notify("WATCHDOG=1")
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn's, and close the hub."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._context.hub.close)
        self.told_to_stop = True
        super().handle_exit(sig, frame)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as e:
        listener.close()
        raise SluiceError(
            f"cannot listen on {host}:{port}: {e.strerror}", "set SLUICE_WEB_PORT to a free port, or to 0"
        ) from None
    listener.set_inheritable(False)
    return listener


@contextlib.contextmanager
def _port_file(path: Path, port: int) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(f"{port}\n")
    part.replace(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.read_text() == f"{port}\n":
                path.unlink()


@contextlib.contextmanager
def _signals_end(server: _Server) -> Iterator[None]:
    """TERM and INT end the server at any moment, and the process goes on to return 0.

    uvicorn listens to signals only while it serves, and raises them again afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        server.told_to_stop = server.should_exit = True

    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _be_a_node(settings: Settings, engine: Engine, address: str, stop: threading.Event) -> None:
    """Register and heartbeat until stopped; a database that is away is asked again with the next beat."""
    info = nodes.NodeInfo(
        node_id=settings.node_id,
        role="web",
        pool="web",
        release=settings.release,
        boot_id=uuid.uuid4().hex,
        instance_id=settings.instance_id,
        address=address,
    )
    registered = False
    while True:
        try:
            with engine.begin() as connection:
                if not registered:
                    nodes.register(connection, info)
                    registered = True
                orders = nodes.heartbeat(connection, info.node_id)
                if orders is None:
                    registered = False  # the row was removed: register with the next beat
                elif orders.state == "draining":
                    # A request takes milliseconds, so there is nothing to wait for; the agent stops us next.
                    nodes.drained(connection, info.node_id)
        except Exception as e:  # the pages must not end with the database
            log.warning("web.heartbeat_failed", error=str(e).splitlines()[0])
        if stop.wait(settings.heartbeat_seconds):
            return
