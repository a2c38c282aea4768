"""The agent's loop: look, decide, act; every second, and faster while something is under way."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from runner.agent.decide import Act, View, decide
from runner.agent.lifecycle import Lifecycle
from runner.agent.metadata import Metadata
from runner.agent.service import Service
from runner.settings import Settings
from runner.state import db, nodes, queries, transitions
from runner.telemetry import systemd

log = structlog.get_logger("agent")

POLL_SECONDS = 1.0
BUSY_POLL_SECONDS = 0.2
EXIT_SECONDS = 10.0  # between asking an idle service to end and killing it
SPOT_MARGIN_SECONDS = 20.0  # what still runs this long before a spot interruption is handed on


class Agent:
    """Looks after one node: keeps its service running, drains it when told, answers the cloud's hooks."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self.engine = engine
        self.node_id = settings.node_id or settings.instance_id or socket.gethostname()
        env = {
            **systemd.without(os.environ),
            "SLUICE_NODE_ID": self.node_id,
            "SLUICE_HOME": str(settings.home.absolute()),
        }
        self.service = Service(
            [sys.executable, "-m", "runner.cli", settings.role],
            env,
            settings.home / "log" / f"{settings.role}.log",
            settings.home / f"{settings.role}.pid",
        )
        in_cloud = bool(settings.instance_id)
        self.metadata = Metadata(settings.imds_url) if in_cloud else None
        self.lifecycle = Lifecycle(settings.instance_id, settings.region) if in_cloud else None
        self.stop = threading.Event()
        self.exit_code = 0
        self._launching: bool | None = None if in_cloud else False  # None: the cloud has not said yet
        self._launching_since = time.monotonic()
        self._terminating = False
        self._spot_end: dt.datetime | None = None
        self._completed = False
        self._next_look = 0.0
        self._quiet: set[str] = set()

    def run(self) -> int:
        """Turn until told to stop and the service has ended; the exit status."""
        systemd.notify("READY=1")
        while True:
            view, acts = self.turn()
            systemd.notify("WATCHDOG=1")
            if Act.EXIT in acts:
                return self.exit_code
            busy = bool(acts) or view.launching or view.terminating or view.node in ("draining", "drained")
            pause = BUSY_POLL_SECONDS if busy or self.stop.is_set() else POLL_SECONDS
            if self.stop.is_set():
                time.sleep(pause)  # the event would not wait any more
            else:
                self.stop.wait(pause)

    def turn(self) -> tuple[View, list[Act]]:
        """Look, decide and act once. Errors of the database or the cloud end the turn, never the agent."""
        self._look_at_cloud()
        view = self._view()
        acts = decide(view)
        for act in acts:
            try:
                done = self._do(act, view)
            except SQLAlchemyError as e:
                self._once("database", f"{act.value}: {_first_line(e)}")
                break
            if not done:
                break
        return view, acts

    # --- looking ----------------------------------------------------------------------------------------------

    def _look_at_cloud(self) -> None:
        if self.metadata is None or self.lifecycle is None:
            return
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + POLL_SECONDS
            try:
                self._terminating = self._terminating or self.metadata.terminating()
                self._spot_end = self.metadata.spot_end() or self._spot_end
                self._quiet.discard("metadata")
            except OSError as e:
                self._once("metadata", str(e))
        if self._launching is not False and not self._terminating:
            state = self.lifecycle.state()
            if state is not None:
                self._launching = state.startswith("Pending")
        if self._terminating:
            self._launching = False
            if not self._completed:
                self.lifecycle.beat("terminate")
        elif self._launching:
            self.lifecycle.beat("launch")

    def _view(self) -> View:
        told = self.stop.is_set()
        alive = self.service.alive()
        try:
            with self.engine.connect() as connection:
                row = queries.node(connection, self.node_id)
            self._quiet.discard("database")
        except SQLAlchemyError as e:
            self._once("database", _first_line(e))
            return View(role=self.settings.role, node=None, alive=alive, told_to_stop=told)
        left = row.seconds_left if row else None
        if self._spot_end is not None:
            # The cloud ends it then, whatever was planned when the drain began.
            spot_left = self._spot_seconds()
            left = spot_left if left is None else min(left, spot_left)
        return View(
            role=self.settings.role,
            node=row.state if row else "",
            alive=alive,
            ready=row is not None and row.state == "ready" and row.live,
            leases=row.running if row else 0,
            seconds_left=left,
            drain_age=row.changed_seconds if row else 0.0,
            terminating=self._terminating,
            spot=self._spot_end is not None,
            launching=bool(self._launching),
            boot_age=time.monotonic() - self._launching_since,
            told_to_stop=told,
        )

    def _spot_seconds(self) -> float:
        assert self._spot_end is not None
        return (self._spot_end - dt.datetime.now(dt.UTC)).total_seconds() - SPOT_MARGIN_SECONDS

    # --- acting -----------------------------------------------------------------------------------------------

    def _do(self, act: Act, view: View) -> bool:
        """Do one act; False if the acts after it must wait for the next turn."""
        match act:
            case Act.START:
                try:
                    self.service.start()
                except OSError as e:
                    self._once("start", f"the service cannot be started: {e}")
            case Act.STOP:
                return self.service.stop(self._grace(view))
            case Act.CORDON:
                self._cordon()
            case Act.HAND_ON:
                with self.engine.begin() as connection:
                    n = transitions.interrupt_node(connection, self.node_id, "the worker ended before its tasks")
                log.warning("tasks handed on", tasks=n)
            case Act.DRAINED:
                with self.engine.begin() as connection:
                    done = nodes.drained(connection, self.node_id)
                if done:
                    log.info("drained", node=self.node_id)
            case Act.CONTINUE:
                if self.lifecycle is not None and self.lifecycle.complete("launch", "CONTINUE"):
                    self._launching = False
            case Act.ABANDON:
                log.error("the service did not become ready in time: the instance is given back")
                if self.lifecycle is not None and self.lifecycle.complete("launch", "ABANDON"):
                    self.exit_code = 1
                    self.stop.set()
            case Act.COMPLETE:
                self._complete(view)
            case Act.EXIT:
                pass
        return True

    def _grace(self, view: View) -> float:
        """Seconds a service has to end after it was asked. One that may still run tasks gets the drain's time."""
        if view.told_to_stop and view.node not in ("drained", "gone"):
            left = view.seconds_left if view.seconds_left is not None else float(self.settings.drain_seconds)
            return max(EXIT_SECONDS, left)
        return EXIT_SECONDS

    def _cordon(self) -> None:
        seconds = float(self.settings.drain_seconds)
        reason = "the autoscaling group terminates the instance"
        if self._spot_end is not None:
            reason, seconds = "spot interruption", max(0.0, min(seconds, self._spot_seconds()))
        with self.engine.begin() as connection:
            nodes.cordon(connection, self.node_id, reason=reason, by="agent", deadline_seconds=seconds)
        log.info("draining", node=self.node_id, reason=reason, seconds=round(seconds))

    def _complete(self, view: View) -> None:
        if self._completed or self.lifecycle is None:
            return
        if not self.lifecycle.complete("terminate", "CONTINUE"):
            return
        self._completed = True  # the machine may be taken away at any moment from here
        if view.node:
            with self.engine.begin() as connection:
                nodes.gone(connection, self.node_id, cause="drained, terminated")

    def _once(self, what: str, error: str) -> None:
        """Log the first of a row of the same trouble."""
        if what not in self._quiet:
            self._quiet.add(what)
            log.warning(f"{what} does not answer", error=error)


def run(settings: Settings) -> int:
    """Run this node's agent until TERM or INT; returns the exit status (1: the instance was given back)."""
    settings.require("database_url")
    settings.home.mkdir(parents=True, exist_ok=True)
    engine = db.connect(settings.database(), pool_size=1, application_name="sluice-agent")
    try:
        agent = Agent(settings, engine)
        with _on_signals(agent.stop):
            log.info("agent started", node=agent.node_id, role=settings.role, release=settings.release)
            return agent.run()
    finally:
        engine.dispose()


@contextlib.contextmanager
def _on_signals(stop: threading.Event) -> Iterator[None]:
    def handler(number: int, _frame: FrameType | None) -> None:
        log.info("told to stop", signal=signal.Signals(number).name)
        stop.set()

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
