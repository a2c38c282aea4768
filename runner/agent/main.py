"""The agent's loop: look, decide, act; every second, and faster while something is under way."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from runner.agent.child import ChildSupervisor
from runner.agent.cloud import CloudWatch
from runner.agent.decide import Act, View, decide
from runner.agent.places import Place, look
from runner.agent.service import Supervisor
from runner.agent.unit import UnitSupervisor
from runner.settings import Settings
from runner.state import db, nodes, orders, transitions
from runner.telemetry import systemd

log = structlog.get_logger("agent")

POLL_SECONDS = 1.0
BUSY_POLL_SECONDS = 0.2
_NO_DATABASE = "postgresql:///"  # of a monitoring host, whose agent never asks it
EXIT_SECONDS = 10.0  # between asking an idle service to end and killing it


class Agent:
    """Looks after one machine: keeps its service running, drains it when told, answers the cloud's hooks."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self.engine = engine
        self.node_id = settings.node_id or settings.instance_id or socket.gethostname()
        of_kind = UnitSupervisor if settings.supervisor == "systemd" else ChildSupervisor
        self.supervisor: Supervisor = of_kind(settings, self.node_id)
        self.cloud = CloudWatch(settings)
        self.stop = threading.Event()
        self.exit_code = 0
        self._quiet: set[str] = set()
        self._empty = False

    def run(self) -> int:
        """Turn until told to stop and, where it is this agent's own, the service has ended; the exit status."""
        systemd.notify("READY=1")
        while True:
            done = self.turn()
            systemd.notify("WATCHDOG=1")
            if any(Act.EXIT in acts for _, acts in done):
                return self.exit_code
            busy = any(
                acts or view.launching or view.terminating or view.node in ("draining", "drained")
                for view, acts in done
            )
            pause = BUSY_POLL_SECONDS if busy or self.stop.is_set() else POLL_SECONDS
            if self.stop.is_set():
                time.sleep(pause)  # the event would not wait any more
            else:
                self.stop.wait(pause)

    def turn(self) -> list[tuple[View, list[Act]]]:
        """Look, decide and act once, for each service. Errors of the database, the cloud or systemd end the turn, never
        the agent."""
        self.cloud.look()
        if self.settings.role == "monitoring":
            return [self._watch()]
        try:
            places = self._look()
        except OSError as e:
            self._once("the supervisor of services", str(e))
            view = View(self.settings.role, None, True, told_to_stop=self.stop.is_set(), owned=False)
            return [(view, decide(view))]
        done = []
        for place in places:
            view = self._view(place)
            acts = decide(view)
            done.append((view, acts))
            for act in acts:
                try:
                    if not self._do(act, view, place):
                        break
                    self._quiet.discard(act.value)
                except SQLAlchemyError as e:
                    self._once("database", f"{act.value}: {_first_line(e)}")
                    break
                except OSError as e:
                    self._once(act.value, str(e))
                    break
        return done

    def _watch(self) -> tuple[View, list[Act]]:
        """A turn on a machine without a service of ours: nothing is registered, only the hooks are answered."""
        view = View(
            role="monitoring",
            node="",
            alive=False,
            terminating=self.cloud.terminating,
            launching=self.cloud.launching,
            told_to_stop=self.stop.is_set(),
        )
        acts = decide(view)
        if Act.CONTINUE in acts:
            self.cloud.complete("launch", "CONTINUE")
        if Act.COMPLETE in acts and not self.cloud.completed:
            self.cloud.complete("terminate", "CONTINUE")
        return view, acts

    # --- looking ----------------------------------------------------------------------------------------------

    def _look(self) -> list[Place]:
        self._empty = False
        try:
            with self.engine.connect() as connection:
                places = look(connection, self.node_id, self.supervisor)
            self._quiet.discard("database")
        except SQLAlchemyError as e:
            self._once("database", _first_line(e))
            self._empty = isinstance(e, ProgrammingError) and self._is_empty()
            places = look(None, self.node_id, self.supervisor)
        self._quiet.discard("the supervisor of services")
        return places

    def _is_empty(self) -> bool:
        try:
            with self.engine.connect() as connection:
                return db.empty(connection)
        except SQLAlchemyError:
            return False

    def _view(self, place: Place) -> View:
        row, cloud = place.row, self.cloud
        left = row.seconds_left if row else None
        if cloud.spot_left is not None:
            # The cloud ends it then, whatever was planned when the drain began.
            left = cloud.spot_left if left is None else min(left, cloud.spot_left)
        return View(
            role=self.settings.role,
            node=None if place.unknown else row.state if row else "",
            alive=place.alive,
            resting=place.alive and place.service.resting(),
            ready=place.ready,
            leases=row.running if row else 0,
            seconds_left=left,
            drain_age=row.changed_seconds if row else 0.0,
            terminating=cloud.terminating,
            leaving=cloud.leaving is not None,
            launching=cloud.launching,
            boot_age=cloud.boot_age,
            told_to_stop=self.stop.is_set(),
            owned=self.supervisor.owns or self.exit_code != 0,
            after_drain=row.after_drain if row else "",
            others=place.others,
            ordered=place.ordered,
            superseded=place.order is not None and not place.ordered,
            successor=place.successor,
            installed=not place.order or self.supervisor.installed(place.order.release),
            current=not place.order or self.supervisor.current() == place.order.release,
            empty=self._empty,
        )

    # --- acting -----------------------------------------------------------------------------------------------

    def _do(self, act: Act, view: View, place: Place) -> bool:
        """Do one act; False if the acts after it must wait for the next turn."""
        match act:
            case Act.CREATE_SCHEMA:
                self._create_schema()
            case Act.INSTALL:
                self._install(place)
            case Act.START:
                place.service.start()
            case Act.STOP:
                return place.service.stop(self._grace(view))
            case Act.CORDON:
                self._cordon(place)
            case Act.HAND_ON:
                with self.engine.begin() as connection:
                    n = transitions.interrupt_node(connection, place.node_id, "the worker ended before its tasks")
                log.warning("tasks handed on", node=place.node_id, tasks=n)
            case Act.DRAINED:
                with self.engine.begin() as connection:
                    done = nodes.drained(connection, place.node_id)
                if done:
                    log.info("drained", node=place.node_id)
            case Act.RELIEVED:
                assert place.order is not None
                with self.engine.begin() as connection:
                    nodes.gone(connection, place.node_id, cause=f"replaced in place by release {place.order.release}")
            case Act.SWITCH:
                assert place.order is not None
                self.supervisor.switch(place.order.release)
                log.info("release switched", release=place.order.release)
                if view.role == "worker":
                    self.stop.set()  # systemd starts the agent of the new release
            case Act.CONTINUE:
                self.cloud.complete("launch", "CONTINUE")
            case Act.ABANDON:
                log.error("the service did not become ready in time: the instance is given back")
                if self.cloud.complete("launch", "ABANDON"):
                    self.exit_code = 1
                    self.stop.set()
            case Act.TERMINATE:
                self.cloud.terminate(decrement=view.after_drain == "terminate")
            case Act.COMPLETE:
                self._complete(view, place)
            case Act.EXIT:
                pass
        return True

    def _grace(self, view: View) -> float:
        """Seconds a service has to end after it was asked. One that may still run tasks gets the drain's time."""
        if view.told_to_stop and view.node not in ("drained", "gone"):
            left = view.seconds_left if view.seconds_left is not None else float(self.settings.drain_seconds)
            return max(EXIT_SECONDS, left)
        return EXIT_SECONDS

    def _create_schema(self) -> None:
        from runner.agent import schema

        with self.engine.begin() as connection:
            if schema.create(connection, self.settings, self.node_id):
                log.info("schema created", release=self.settings.release)

    def _install(self, place: Place) -> None:
        assert place.order is not None
        try:
            self.supervisor.install(place.order.release)
        except OSError as e:
            if place.order.error != str(e):
                with self.engine.begin() as connection:
                    orders.failed(connection, self.node_id, place.order.release, str(e))
            raise

    def _cordon(self, place: Place) -> None:
        seconds, by, after = float(self.settings.drain_seconds), "agent", ""
        if self.cloud.leaving is not None:
            reason, after = self.cloud.leaving, self.cloud.then
            if self.cloud.spot_left is not None:
                seconds = max(0.0, min(seconds, self.cloud.spot_left))
        elif self.cloud.terminating:
            reason = "the autoscaling group terminates the instance"
        else:
            assert place.order is not None
            reason, by, seconds = place.order.reason, place.order.requested_by, place.order.drain_seconds
        with self.engine.begin() as connection:
            nodes.cordon(connection, place.node_id, reason=reason, by=by, deadline_seconds=seconds, after=after)
        log.info("draining", node=place.node_id, reason=reason, seconds=round(seconds))

    def _complete(self, view: View, place: Place) -> None:
        # The machine may be taken away at any moment from here.
        if self.cloud.completed or not self.cloud.complete("terminate", "CONTINUE"):
            return
        if view.node:
            with self.engine.begin() as connection:
                nodes.gone(connection, place.node_id, cause="drained, terminated")

    def _once(self, what: str, error: str) -> None:
        """Log the first of a row of the same trouble."""
        if what not in self._quiet:
            self._quiet.add(what)
            log.warning(f"not done: {what}", error=error)


def run(settings: Settings) -> int:
    """Run this node's agent until TERM or INT; returns the exit status (1: the instance was given back)."""
    url = _NO_DATABASE
    if settings.role != "monitoring":
        settings.require("database_url")
        url = settings.database()
    settings.home.mkdir(parents=True, exist_ok=True)
    engine = db.connect(url, pool_size=1, application_name="sluice-agent")
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
