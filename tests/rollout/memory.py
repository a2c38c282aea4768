"""An autoscaling group, its nodes and a journal in memory, for drills by the thousand."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from runner.rollout.driver import Plan, Progress, turn
from runner.rollout.facts import Facts, Group, Instance, NodeFact, Schema
from runner.rollout.gate import RunState, Tally
from runner.rollout.plan import Wish, plan
from runner.settings import SluiceError
from runner.state.views import RolloutRow, StepRow

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


class Crash(Exception):
    """The driver dies here."""


@dataclass
class Machine:
    """An instance and the node on it. `busy`: ticks until its tasks have ended."""

    id: str
    release: str
    lifecycle: str = "InService"
    node: str = "ready"  # "" before it has registered
    busy: int = 0
    boot: int = 0  # ticks until it registers
    alive: bool = True
    shutdown: int = 0  # ticks between leaving the group and being off
    ordered: str = ""  # the release it was told to change to
    beside: list[tuple[str, int]] = field(default_factory=list)  # what drains there: release, ticks

    def change(self, release: str) -> None:
        self.ordered, self.boot = release, 2
        # What drains already serves again at once.
        for other, busy in self.beside:
            if other == release:
                self.beside = [(self.release, self.busy)]
                self.release, self.busy, self.ordered = release, busy, ""


@dataclass
class MemoryFleet:
    """One pool. It does what AWS, agents and workers do, one tick at a time."""

    desired: int = 2
    minimum: int = 2
    maximum: int = 5
    release: str = "old"
    machines: list[Machine] = field(default_factory=list)
    broken: frozenset[str] = frozenset()  # releases that never register
    failing: frozenset[str] = frozenset()  # releases whose heartbeat run fails
    killed_tasks: int = 0
    fewest_serving: int = 10**6
    heartbeats: dict[tuple[str, dt.datetime], int] = field(default_factory=dict)
    hook: Callable[[str], None] = lambda point: None
    launched: int = 0
    role: str = "worker"
    bad_tasks: frozenset[str] = frozenset()  # releases whose tasks fail, but for the heartbeat
    no_capacity: bool = False
    schema: Schema = field(default_factory=Schema)
    migrated: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, n: int, release: str = "old", **more: Any) -> MemoryFleet:
        fleet = cls(desired=n, minimum=n, maximum=n + 3, release=release, **more)
        fleet.launched = n
        fleet.machines = [Machine(f"i-{k}", release, busy=k % 3) for k in range(1, n + 1)]
        return fleet

    def tick(self) -> None:
        """A second goes by."""
        for m in self.machines:
            if not m.alive:
                continue
            m.busy = max(0, m.busy - 1)
            m.beside = [(r, busy - 1) for r, busy in m.beside if busy > 0]
            if m.ordered and m.ordered not in self.broken and m.ordered != m.release:
                m.boot -= 1
                if m.boot <= 0:  # it is ready, and the other one gives way
                    m.beside, m.release, m.busy = [*m.beside, (m.release, m.busy)], m.ordered, 0
            if m.node == "" and m.release not in self.broken:
                m.boot -= 1
                if m.boot <= 0:
                    m.node = "ready"
            if m.lifecycle == "Pending:Wait" and m.node == "ready":
                m.lifecycle = "InService"
            if m.node == "draining" and m.busy == 0:
                m.node = "drained"
            if m.lifecycle == "Terminating:Wait":
                if m.node == "ready":
                    m.node = "draining"
                if m.node in ("", "drained"):
                    m.lifecycle = ""
                    self.killed_tasks += m.busy
            if m.lifecycle == "":
                m.alive, m.shutdown = m.shutdown > 0, m.shutdown - 1
        members = [m for m in self.machines if m.lifecycle and not m.lifecycle.startswith("Terminating")]
        for _ in range(0 if self.no_capacity else self.desired - len(members)):
            self.launched += 1
            self.machines.append(Machine(f"i-{self.launched}", self.release, "Pending:Wait", node="", boot=2, busy=0))
        self.fewest_serving = min(self.fewest_serving, sum(m.node == "ready" for m in self.machines if m.alive))

    # --- what the steps see and do ----------------------------------------------------------------------------

    def facts(self) -> Facts:
        nodes = tuple(
            NodeFact(m.id, m.id, m.node, m.release, m.alive, m.busy)
            for m in self.machines
            if m.node not in ("", "gone")
        )
        nodes += tuple(
            NodeFact(f"{m.id}.{r}", m.id, "draining", r, m.alive, busy)
            for m in self.machines
            if m.alive
            for r, busy in m.beside
        )
        return Facts(self.role, "default" if self.role == "worker" else self.role, self.group(), nodes, self.schema)

    def group(self) -> Group:
        members = tuple(Instance(m.id, m.lifecycle, m.release) for m in self.machines if m.lifecycle)
        return Group("g", self.desired, self.minimum, self.maximum, self.release, members)

    def _do(self, what: str, effect: Callable[[], Any]) -> Any:
        self.hook(f"before {what}")
        value = effect()
        self.hook(f"after {what}")
        return value

    def set_release(self, release: str) -> None:
        self._do("set_release", lambda: setattr(self, "release", release))

    def set_desired(self, count: int) -> None:
        if not self.minimum <= count <= self.maximum:
            raise SluiceError(f"{count} is not between {self.minimum} and {self.maximum}")
        self._do("set_desired", lambda: setattr(self, "desired", count))

    def terminate(self, instance_id: str, *, decrement: bool) -> None:
        machine = self._machine(instance_id)

        def effect() -> None:
            # AWS does not look whether it is leaving already: a second decrement counts again.
            if decrement:
                assert self.desired > self.minimum, "AWS would refuse"
                self.desired -= 1
            machine.lifecycle = "Terminating:Wait"

        self._do("terminate", effect)

    def cordon(self, instance_id: str, *, reason: str, by: str, seconds: float) -> None:
        machine = self._machine(instance_id)
        if machine.node in ("", "booting", "ready"):
            self._do("cordon", lambda: setattr(machine, "node", "draining"))

    def uncordon(self, instance_id: str, *, by: str) -> None:
        machine = self._machine(instance_id)
        if machine.node == "draining":
            self._do("uncordon", lambda: setattr(machine, "node", "ready"))

    def gone(self, instance_ids: Sequence[str]) -> set[str]:
        dead = [machine for i in instance_ids if not (machine := self._machine(i)).alive]
        for machine in dead:
            self._do("gone", lambda machine=machine: setattr(machine, "node", "gone"))
        return {machine.id for machine in dead}

    def heartbeat(self, node_id: str, at: dt.datetime) -> int:
        return int(self._do("heartbeat", lambda: self.heartbeats.setdefault((node_id, at), len(self.heartbeats) + 1)))

    def run_state(self, run_id: int) -> RunState:
        node_id = next(n for (n, _), run in self.heartbeats.items() if run == run_id)
        failed = self._machine(node_id).release in self.failing
        return RunState("failed", "ValueError: broken") if failed else RunState("success")

    def end_runs(self, run_ids: Collection[int]) -> None:
        assert set(run_ids) <= set(self.heartbeats.values())

    def set_template(self, version: str) -> None:
        raise AssertionError("there are no templates here")

    def launch_error(self, since: dt.datetime) -> str:
        return "We currently do not have sufficient m7i.large capacity" if self.no_capacity else ""

    def mark(self) -> int:
        return 7

    def tallies(self, release: str, after: int) -> tuple[Tally, Tally]:
        assert after == 7
        return Tally(40, 30 if release in self.bad_tasks else 0), Tally(400, 1)

    def migrate(self, release: str, phase: str) -> None:
        self._do("migrate", lambda: self.migrated.append(phase))

    def others(self, release: str) -> list[str]:
        return [m.id for m in self.machines if m.alive and m.release != release]

    def order(self, instance_id: str, release: str, *, reason: str, by: str, seconds: float) -> None:
        machine = self._machine(instance_id)
        if machine.ordered != release:
            self._do("order", lambda: machine.change(release))

    def order_error(self, instance_id: str) -> str:
        return ""

    def _machine(self, instance_id: str) -> Machine:
        return next(m for m in self.machines if m.id == instance_id)


class MemoryJournal:
    """As the tables keep it, with a clock that moves only with tick()."""

    def __init__(self, steps: Plan, release: str, hook: Callable[[str], None]) -> None:
        self.rollout = RolloutRow(
            1, "worker", "default", release, "replace", {}, "running", None, None, None, None, "me", START, None
        )
        self.then: tuple[Wish, Plan] | None = None
        self.now = START
        self.hook = hook
        self.steps: list[StepRow] = []
        self.append(1, steps)

    def append(self, first: int, steps: Plan) -> None:
        for seq, (action, args) in enumerate(steps, first):
            self.steps.append(StepRow(seq, action, dict(args), "pending", {}, None, None, None))

    def load(self) -> Progress | None:
        if self.rollout.state != "running":
            return None
        steps = [
            replace(s, age=(self.now - s.started_at).total_seconds() if s.started_at else None) for s in self.steps
        ]
        return Progress(self.rollout, steps)

    def _set(self, seq: int, **changes: Any) -> None:
        self.steps = [replace(s, **changes) if s.seq == seq else s for s in self.steps]

    def start(self, seq: int, detail: Mapping[str, Any]) -> None:
        self.hook("before start")
        self._set(seq, state="running", detail=dict(detail), started_at=self.now)
        self.hook("after start")

    def note(self, seq: int, detail: Mapping[str, Any]) -> None:
        self.hook("before note")
        self._set(seq, detail=dict(detail))
        self.hook("after note")

    def done(self, seq: int, detail: Mapping[str, Any]) -> None:
        self.hook("before done")
        self._set(seq, state="done", detail=dict(detail))
        self.hook("after done")

    def fail(self, seq: int, detail: Mapping[str, Any], error: str, undo: Plan) -> None:
        self.hook("before fail")
        self._set(seq, state="failed", detail=dict(detail))
        self._turn(seq, error, undo)
        self.hook("after fail")

    def turn_back(self, seq: int, error: str, undo: Plan) -> None:
        self.hook("before turn_back")
        self._turn(seq, error, undo)
        self.hook("after turn_back")

    def _turn(self, seq: int, error: str, undo: Plan) -> None:
        self.steps = [s for s in self.steps if s.seq <= seq]
        self.append(seq + 1, undo)
        self.rollout = replace(self.rollout, error=error)

    def extend(self, seq: int, steps: Plan) -> None:
        self.hook("before extend")
        self.append(seq + 1, steps)
        self.hook("after extend")

    def finish(self, state: str, detail: Mapping[str, Any], then: tuple[Wish, Plan] | None) -> None:
        self.hook("before finish")
        self.rollout = replace(self.rollout, state=state)
        self.then = then
        self.hook("after finish")


class Drill:
    """A fleet, a rollout of it, and a driver that may be killed at any numbered point."""

    def __init__(self, fleet: MemoryFleet, wish: Wish, crash_at: int = 0) -> None:
        self.points: list[str] = []
        self.crash_at = crash_at
        self.fleet = fleet
        steps = [(s.action, s.args) for s in plan(fleet.facts(), wish)]
        self.journal = MemoryJournal(steps, wish.release, self.point)
        before = fleet.facts().before(wish.release)
        self.journal.rollout = replace(self.journal.rollout, wish={**vars(wish), "before": before})
        fleet.hook = self.point

    def point(self, name: str) -> None:
        self.points.append(name)
        if len(self.points) == self.crash_at:
            raise Crash(name)

    def run(self, limit: int = 2000, at: Callable[[Drill], None] = lambda drill: None) -> str:
        """Until it ends; the state it ends in. A killed driver is followed by another one, which knows nothing."""
        for _ in range(limit):
            try:
                if turn(self.journal, self.fleet) == "over" and self.journal.rollout.state != "running":
                    return self.journal.rollout.state
            except Crash:
                pass
            at(self)
            self.fleet.tick()
            self.journal.now += dt.timedelta(seconds=1)
        raise AssertionError(f"does not end: {self.journal.steps}")

    def settled(self) -> tuple[int, int, str, list[str]]:
        """(desired, serving, tag, releases that serve) once everything has come to rest."""
        for _ in range(20):
            self.fleet.tick()
        serving = [m.release for m in self.fleet.machines if m.alive and m.node == "ready"]
        return self.fleet.desired, len(serving), self.fleet.release, sorted(serving)


def shuffled(seed: int, fleet: MemoryFleet) -> MemoryFleet:
    """The same fleet with other task lengths."""
    rng = random.Random(seed)
    for m in fleet.machines:
        m.busy = rng.randrange(6)
    return fleet
