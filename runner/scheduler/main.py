"""A scheduler: all of them are active, none is special.

Duties that many may do at once share the rows with SKIP LOCKED; duties that must be single hold an advisory lock for
the length of their transaction. NOTIFY wakes the loop; the tick is only the net under it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg
import structlog
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from runner import bundle
from runner.rollout import driver
from runner.rollout.cloud import Cloud
from runner.scheduler import lost_nodes
from runner.scheduler.agenda import agenda
from runner.scheduler.alert import Alerting
from runner.scheduler.autoscale import Autoscaling
from runner.scheduler.create_runs import create_runs
from runner.scheduler.dispatch import Resender, dispatch
from runner.scheduler.figures import Figures
from runner.scheduler.leader import Leader
from runner.scheduler.lookup import provider
from runner.scheduler.reap import Reaper
from runner.scheduler.sense import Sensing
from runner.settings import Settings, SluiceError
from runner.state import assets, backfills, bundles, nodes, rollouts, transitions
from runner.state.db import connect, listen
from runner.state.doorbell import Doorbell, celery_app
from runner.telemetry import systemd

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
SENSING_SECONDS = 60.0  # sensors that were not looked after for longer are a hang


class Every:
    """Runs a duty at most every so many seconds."""

    def __init__(self, seconds: float, duty: Callable[[], object]) -> None:
        self._seconds = seconds
        self._duty = duty
        self._due = 0.0

    def maybe(self) -> None:
        if time.monotonic() >= self._due:
            self._duty()
            self._due = time.monotonic() + self._seconds


class Scheduler:
    """What one `runner scheduler` process is made of."""

    def __init__(self, settings: Settings) -> None:
        settings.require("database_url", "broker_url", "node_id")
        self.settings = settings
        self.url = settings.database()
        self.boot_id = uuid.uuid4().hex
        self.engine: Engine = connect(self.url, application_name=f"scheduler {settings.node_id}", hot=True)
        self.doorbell = Doorbell(celery_app(settings.broker()))
        self.resender = Resender(self.engine, self.doorbell)
        self.reaper = Reaper(settings.lease_seconds)
        self.sensing = Sensing(self.engine, settings.node_id, provider=provider(self.engine, settings))
        self.alerting = Alerting(self.engine, env=settings.env, provider=provider(self.engine, settings))
        self.leaders = _leaders(self.engine, settings)
        self.stopping = threading.Event()
        self._periodic = [
            Every(settings.heartbeat_seconds, self._heartbeat),
            Every(settings.heartbeat_seconds, self._reap),
            Every(0.5, self._drive_rollouts),
            Every(5.0, self._look_for_lost_nodes),
        ]
        self._resend = Every(0.5, self.resender.resend)

    def run(self) -> int:
        """Work until `stopping` is set. A database that is away is waited for."""
        registered = False
        listener: psycopg.Connection[tuple[object, ...]] | None = None
        while not self.stopping.is_set():
            try:
                if not registered:
                    self._register()
                    registered = True
                    self.sensing.start()
                    self.alerting.start()
                    for leader in self.leaders:
                        leader.start()
                    systemd.notify("READY=1")
                if listener is None:
                    listener = listen(self.url)
                self.tick()
                self._sleep(listener)
            except (DBAPIError, psycopg.OperationalError) as e:
                log.warning("database is away", action="tick", error=str(getattr(e, "orig", e)))
                self.reaper.forget()
                listener = None
                self.stopping.wait(1.0)
            if time.monotonic() - self.sensing.beat < SENSING_SECONDS:
                systemd.notify("WATCHDOG=1")
        self._leave()
        return 0

    def tick(self) -> None:
        """All duties once, as far as there is something to do."""
        with self.engine.begin() as connection:
            todo = agenda(connection)
            messages = transitions.dispatch(connection) if todo.due else []
        self.doorbell.ring(messages)
        if todo.due_dags:
            self._repeat(create_runs)
        if todo.assets:
            self._repeat(assets.create_runs)
        if todo.backfills:
            self._advance_backfills()
        if todo.queued_runs or todo.backfills:
            self._start_runs()
        if todo.late_runs:
            self._repeat(transitions.time_out_runs)
        if todo.retries:
            self._repeat(transitions.wake_retries)
        if todo.past:
            self._repeat(transitions.release_past)
        if todo.limited or todo.queued_runs or todo.backfills or todo.retries or todo.due_dags:
            with self.engine.begin() as connection:
                transitions.admit(connection)
        if any(todo._replace(due=False)):
            dispatch(self.engine, self.doorbell)
        if todo.due:
            self._resend.maybe()
        for duty in self._periodic:
            duty.maybe()

    def _repeat(self, duty: Callable[[Connection], int]) -> None:
        """In transactions of their own, until there is nothing left; catching up on much is work, not a hang."""
        while not self.stopping.is_set():
            with self.engine.begin() as connection:
                if not duty(connection):
                    return
            systemd.notify("WATCHDOG=1")

    def _start_runs(self) -> None:
        after = ""
        while not self.stopping.is_set():
            with self.engine.begin() as connection:
                found = transitions.start_runs(connection, after)
            if found is None:
                return
            dag_id, started = found
            after = after if started else dag_id
            systemd.notify("WATCHDOG=1")

    def _advance_backfills(self) -> None:
        after = 0
        while not self.stopping.is_set():
            with self.engine.begin() as connection:
                found = backfills.advance(connection, after)
            if found is None:
                return
            after, _ = found
            systemd.notify("WATCHDOG=1")

    def _look_for_lost_nodes(self) -> None:
        if not self.settings.instance_id:
            return
        try:
            lost_nodes.hand_on(self.engine, lambda ids: Cloud(self.settings.region).existing(ids))
        except (ClientError, BotoCoreError) as e:
            log.warning("the cloud does not answer", action="lost_nodes", error=str(e))

    def _sleep(self, listener: psycopg.Connection[tuple[object, ...]]) -> None:
        for _ in listener.notifies(timeout=TICK_SECONDS / 2, stop_after=1):
            pass

    def _register(self) -> None:
        with self.engine.begin() as connection:
            register_builtin(connection)
            info = nodes.NodeInfo(
                node_id=self.settings.node_id,
                role="scheduler",
                pool="scheduler",
                release=self.settings.release,
                boot_id=self.boot_id,
                instance_id=self.settings.instance_id,
                address=socket.gethostname(),
            )
            state = nodes.register(connection, info)
        log.info("registered", action="register", node=info.node_id, state=state, release=info.release)

    def _heartbeat(self) -> None:
        with self.engine.begin() as connection:
            if nodes.heartbeat(connection, self.settings.node_id) is None:
                self._register()

    def _reap(self) -> None:
        with self.engine.begin() as connection:
            self.reaper.reap(connection)

    def _drive_rollouts(self) -> None:
        try:
            driver.drive_all(self.engine, self.settings, owner=self.settings.node_id)
        except SluiceError as e:
            log.warning("rollout", action="drive", error=e.message)

    def _leave(self) -> None:
        if self.sensing.is_alive():
            self.sensing.stop()
            self.alerting.stop()
            for leader in self.leaders:
                leader.stop()
        with contextlib.suppress(DBAPIError), self.engine.begin() as connection:
            rollouts.let_all_go(connection, self.settings.node_id)  # its own roll may be among them
        self.doorbell.close()
        self.engine.dispose()


def _leaders(engine: Engine, settings: Settings) -> list[Leader]:
    """The duties that deal with the cloud; none outside of one."""
    if not settings.instance_id:
        return []
    scaling = Autoscaling(engine, lambda: Cloud(settings.region), settings)
    return [scaling, *([Figures(engine, settings)] if settings.cloudwatch else [])]


def register_builtin(connection: Connection) -> None:
    """Make the pipelines that ship with the runner known; workers load them from their own release."""
    directory = bundle.fetch(bundle.BUILTIN, storage=None, cache=Path())
    bundles.register_and_activate(
        connection,
        version=bundle.BUILTIN,
        name=bundle.BUILTIN,
        url="",
        size=0,
        specs=bundle.validate(directory),
        who="sluice",
    )


def run(settings: Settings) -> int:
    """Entry point of `runner scheduler`."""
    scheduler = Scheduler(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: scheduler.stopping.set())
    return scheduler.run()
