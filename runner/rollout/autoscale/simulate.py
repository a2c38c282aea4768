"""Replays a load on a pool that a policy scales: who waits how long, and how many node-hours that takes. Pure.

Tasks are taken in the order they became ready, by any free slot. A node is paid for from the moment it is asked for
until it is gone, and takes tasks once it has booted.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runner.rollout.autoscale.load import Task


@dataclass(frozen=True)
class Machine:
    """One node: tasks it runs at once, and seconds from the request until it takes the first."""

    slots: int
    boot_seconds: float = 90.0


@dataclass
class SimNode:
    """A node of the replay. leaving: it takes no more tasks and is gone with its last."""

    id: int
    asked_at: float
    serves_at: float
    running: int = 0
    leaving: bool = False
    gone_at: float | None = None


@dataclass(frozen=True)
class Moment:
    """A sample: seconds since the start, tasks that wait and that run, nodes that are paid for."""

    at: float
    waiting: int
    running: int
    nodes: int


@dataclass
class Pool:
    """What a policy sees, and what it may do: grow, and let nodes go."""

    machine: Machine
    now: float = 0.0
    nodes: list[SimNode] = field(default_factory=list)
    waiting: deque[Task] = field(default_factory=deque)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=200))  # of the tasks that ended last
    busy_picked: int = 0  # nodes that a policy let go while they ran something
    _ids: int = 0

    @property
    def staying(self) -> list[SimNode]:
        """Nodes that serve or boot, oldest first."""
        return [n for n in self.nodes if not n.leaving]

    @property
    def running(self) -> int:
        return sum(n.running for n in self.nodes)

    def grow(self, count: int) -> None:
        """Ask for so many more nodes."""
        for _ in range(count):
            self._ids += 1
            self.nodes.append(SimNode(self._ids, self.now, self.now + self.machine.boot_seconds))

    def release(self, node: SimNode) -> None:
        """Let a node finish what it runs and go."""
        node.leaving = True
        if node.running:
            self.busy_picked += 1


class Policy(Protocol):
    """Decides at every tick."""

    name: str

    def start(self, pool: Pool) -> None:
        """The fleet before the first task; its nodes have booted."""

    def tick(self, pool: Pool) -> None: ...


@dataclass(frozen=True)
class Result:
    """A replay. waits: of each task until it began, sorted; seconds: from the first task until all is over and the
    tail has passed."""

    policy: str
    waits: Sequence[float]
    seconds: float
    node_hours: float
    peak: int
    launched: int
    busy_picked: int
    utilization: float  # of the slots that were paid for
    timeline: Sequence[Moment]

    def wait(self, percent: float) -> float:
        """The waiting time that so many percent of the tasks do not exceed (nearest rank)."""
        return self.waits[max(0, math.ceil(len(self.waits) * percent / 100) - 1)]


def simulate(
    tasks: Sequence[Task],
    policy: Policy,
    machine: Machine,
    *,
    tick_seconds: float = 1.0,
    tail_seconds: float = 900.0,
    most_seconds: float = 90 * 86400.0,
) -> Result:
    """Replay a load, sorted by ready_at. tail_seconds: how much longer the fleet is looked at after the last task.

    Raises ValueError if the policy never gets the tasks done.
    """
    pool, rng = Pool(machine), random.Random(0)
    policy.start(pool)
    for node in pool.nodes:
        node.serves_at = 0.0
    ended: list[SimNode] = []
    ends: list[tuple[float, int, float, SimNode]] = []  # a heap of tasks at work: when, tie-break, length, where
    free: list[SimNode] = []  # a node for each of its free slots
    opened: set[int] = set()
    waits: list[float] = []
    timeline: list[Moment] = []
    worked, arrived, started, peak = 0.0, 0, 0, len(pool.nodes)
    last = tasks[-1].ready_at
    over_at: float | None = None
    while over_at is None or pool.now < over_at + tail_seconds:
        policy.tick(pool)
        for node in [n for n in pool.nodes if n.leaving and not n.running]:
            node.gone_at = pool.now
            pool.nodes.remove(node)
            ended.append(node)
        free = [n for n in free if not n.leaving]
        peak = max(peak, len(pool.nodes))
        timeline.append(Moment(pool.now, len(pool.waiting), pool.running, len(pool.nodes)))
        until = pool.now + tick_seconds
        # Within a tick: tasks end, become ready and begin one after another, at their own instants.
        for node in pool.staying:
            if node.id not in opened and node.serves_at < until:
                opened.add(node.id)
                heapq.heappush(ends, (max(node.serves_at, pool.now), -node.id, 0.0, node))
        while True:
            at_end = ends[0][0] if ends else math.inf
            at_ready = tasks[arrived].ready_at if arrived < len(tasks) else math.inf
            at = min(at_end, at_ready)
            if at >= until:
                break
            if at_end <= at_ready:
                _, order, length, node = heapq.heappop(ends)
                if order < 0:  # it has booted
                    free += [node] * machine.slots if not node.leaving else []
                else:
                    node.running -= 1
                    pool.durations.append(length)
                    free += [node] if not node.leaving else []
            else:
                pool.waiting.append(tasks[arrived])
                arrived += 1
            while pool.waiting and free:
                i = rng.randrange(len(free))
                free[i], free[-1] = free[-1], free[i]
                node, task = free.pop(), pool.waiting.popleft()
                node.running += 1
                started += 1
                worked += task.seconds
                waits.append(at - task.ready_at)
                heapq.heappush(ends, (at + task.seconds, started, task.seconds, node))
        pool.now = until
        if over_at is None and arrived == len(tasks) and not ends and not pool.waiting:
            over_at = pool.now
        if pool.now > last + most_seconds:
            raise ValueError(f"{policy.name}: {len(pool.waiting)} tasks are never taken")
    hours = sum((n.gone_at if n.gone_at is not None else pool.now) - n.asked_at for n in [*ended, *pool.nodes]) / 3600
    return Result(
        policy=policy.name,
        waits=sorted(waits),
        seconds=pool.now,
        node_hours=hours,
        peak=peak,
        launched=pool._ids,
        busy_picked=pool.busy_picked,
        utilization=worked / 3600 / (hours * machine.slots) if hours else 0.0,
        timeline=timeline,
    )
