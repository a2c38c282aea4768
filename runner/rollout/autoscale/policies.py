"""What can be replayed: the autoscaler itself, a fixed fleet, and target tracking as AWS does it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace

from runner.rollout.autoscale.policy import History, Limits, Load, Node, backlog_per_slot, decide, merge
from runner.rollout.autoscale.simulate import Policy, Pool
from runner.settings import UsageError

# AWS makes two alarms for a target tracking policy on one-minute figures: above the target for 3 minutes in a row, and
# more than a tenth below it for 15 ("Target tracking scaling policies for Amazon EC2 Auto Scaling").
PERIOD_SECONDS = 60.0
_HIGH, _LOW, _MARGIN = 3, 15, 0.9


@dataclass
class Sluice:
    """The policy that the schedulers follow."""

    name: str
    limits: Limits
    history: History = field(default_factory=History)

    def start(self, pool: Pool) -> None:
        pool.grow(self.limits.minimum)

    def tick(self, pool: Pool) -> None:
        load = self.load(pool)
        decision = decide(self.limits, load, self.history, pool.now)
        self.history = decision.history
        if decision.desired is not None:
            pool.grow(decision.desired - load.desired)
        gone = set(decision.drain)
        for node in [n for n in pool.staying if str(n.id) in gone]:
            pool.release(node)

    def load(self, pool: Pool) -> Load:
        """The pool as the policy sees it."""
        nodes = [Node(str(n.id), "serves" if n.serves_at <= pool.now else "boots", n.running) for n in pool.staying]
        lately = None
        if pool.waiting:
            lately = merge([(1, s) for s in pool.durations], self.limits.target_wait_seconds)
        return Load(
            ready=len(pool.waiting),
            oldest_wait_seconds=pool.now - pool.waiting[0].ready_at if pool.waiting else 0.0,
            task_seconds=lately,
            nodes=nodes,
            desired=len(nodes),
            room=self.limits.maximum,
        )


@dataclass
class Fixed:
    """A fleet that stays as it is."""

    name: str
    count: int

    def start(self, pool: Pool) -> None:
        pool.grow(self.count)

    def tick(self, pool: Pool) -> None:
        pass


@dataclass
class TargetTracking:
    """Target tracking on one figure: the CPU of the nodes in percent, or the backlog per slot.

    cpu_share: the part of its slot's CPU that a task uses. A scale-in takes the oldest nodes, whatever they run.
    """

    name: str
    limits: Limits
    target: float
    figure: str  # cpu, backlog
    cpu_share: float = 1.0
    minutes: deque[float] = field(default_factory=lambda: deque(maxlen=_LOW))
    _sums: list[float] = field(default_factory=list)
    _minute_ends: float = PERIOD_SECONDS

    def start(self, pool: Pool) -> None:
        # CPU says nothing about a pool without a node.
        pool.grow(max(self.limits.minimum, 1 if self.figure == "cpu" else 0))

    def tick(self, pool: Pool) -> None:
        value = self._cpu(pool) if self.figure == "cpu" else self._backlog(pool)
        if value is not None:
            self._sums.append(value)
        if pool.now < self._minute_ends:
            return
        self._minute_ends += PERIOD_SECONDS
        if self._sums:
            self.minutes.append(sum(self._sums) / len(self._sums))
        self._sums = []
        self._track(pool)

    def _track(self, pool: Pool) -> None:
        lately, staying = list(self.minutes), pool.staying
        floor = max(self.limits.minimum, 1 if self.figure == "cpu" else 0)
        if len(lately) >= _HIGH and min(lately[-_HIGH:]) > self.target:
            served = sum(n.serves_at <= pool.now for n in staying)
            wanted = math.ceil(max(served, 1) * lately[-1] / self.target)
            pool.grow(max(0, min(wanted, self.limits.maximum) - len(staying)))
        elif len(lately) == _LOW and max(lately) < self.target * _MARGIN:
            wanted = max(floor, math.ceil(len(staying) * lately[-1] / self.target))
            for node in staying[: max(0, len(staying) - wanted)]:
                pool.release(node)

    def _cpu(self, pool: Pool) -> float | None:
        serving = [n for n in pool.nodes if n.serves_at <= pool.now]
        if not serving:
            return None
        return 100 * self.cpu_share * sum(n.running for n in serving) / (len(serving) * pool.machine.slots)

    def _backlog(self, pool: Pool) -> float:
        slots = pool.machine.slots * sum(n.serves_at <= pool.now for n in pool.staying)
        return backlog_per_slot(len(pool.waiting), pool.running, slots, pool.machine.slots)


def parse(text: str, limits: Limits, *, cpu_share: float = 1.0) -> Policy:
    """A policy by its name: `sluice[:cooldown=S,wait=S,min=N,max=N]`, `fixed:N`, `cpu:PERCENT`, `backlog:PER_SLOT`.

    Raises UsageError for anything else.
    """
    kind, _, value = text.partition(":")
    try:
        if kind == "sluice":
            return Sluice(text, _limits(value, limits))
        if kind == "fixed" and (count := int(value)) > 0:
            return Fixed(text, count)
        if kind in ("cpu", "backlog") and (target := float(value)) > 0:
            return TargetTracking(text, limits, target, kind, cpu_share)
    except ValueError as e:
        raise UsageError(f"policy {text!r}: {e}", _HINT) from None
    raise UsageError(f"no policy {text!r}", _HINT)


_HINT = "sluice, sluice:cooldown=300,wait=60,min=0,max=8, fixed:4, cpu:60 (percent) or backlog:1 (tasks per slot)"
_FIELDS = {"cooldown": "cooldown_seconds", "wait": "target_wait_seconds", "min": "minimum", "max": "maximum"}


def _limits(text: str, limits: Limits) -> Limits:
    changes: dict[str, float | int] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in _FIELDS:
            raise ValueError(f"there is no {name!r}")
        changes[_FIELDS[name]] = int(value) if name in ("min", "max") else float(value)
    return replace(limits, **changes)  # type: ignore[arg-type]
