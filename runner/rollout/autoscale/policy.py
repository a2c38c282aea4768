"""The autoscaler's policy: a pure function of a pool's load, its limits and what was needed lately.

Up at once. Down to what was needed at the most within the cool-down (the stabilization window of Kubernetes' horizontal
pod autoscaler), by taking out nodes that run nothing. A waiting task asks for the part of a slot that gets it done
within the target wait: many short tasks share a slot, a long one, or one that nobody knows, has its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

# serves: takes tasks. boots: will. leaves: takes no more, by our order. away: the same, by somebody else's.
State = Literal["serves", "boots", "leaves", "away"]


@dataclass(frozen=True)
class Limits:
    """What a pool may be. Slots are of one node; cool-down and target wait in seconds."""

    minimum: int
    maximum: int
    slots: int
    cooldown_seconds: float = 300.0
    target_wait_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum or self.slots < 1:
            raise ValueError(f"a pool of {self.minimum} to {self.maximum} nodes of {self.slots} slots is none")
        if self.cooldown_seconds < 0 or self.target_wait_seconds <= 0:
            raise ValueError("a cool-down is 0 s or longer, a target wait longer than 0 s")


@dataclass(frozen=True)
class Node:
    """A member of the pool's group that the group does not take out already, and how many tasks it runs.

    over: it leaves by our order and there is nothing to wait for any more.
    """

    id: str
    state: State
    running: int = 0
    over: bool = False


@dataclass(frozen=True)
class Load:
    """A pool at one moment. Nodes are given oldest first.

    ready, queued: tasks that wait, and that are on the broker. task_seconds: how long the waiting ones have taken
    lately, each counted with the target wait at the most; None: unknown. desired, room: the group's desired capacity
    and its own maximum, a rollout's surge included. rolling: the pool is being rolled.
    """

    ready: int = 0
    queued: int = 0
    oldest_wait_seconds: float = 0.0
    task_seconds: float | None = None
    nodes: Sequence[Node] = ()
    desired: int = 0
    room: int = 0
    rolling: bool = False

    @property
    def staying(self) -> list[Node]:
        """The nodes that serve or will."""
        return [n for n in self.nodes if n.state in ("serves", "boots")]

    @property
    def size(self) -> int:
        """How many nodes serve or will, those included that were asked for and are not there yet."""
        return len(self.staying) + max(0, self.desired - len(self.nodes))

    @property
    def running(self) -> int:
        """Tasks on nodes that stay."""
        return sum(n.running for n in self.staying)


@dataclass(frozen=True)
class History:
    """What was needed: (time, nodes), the nodes falling from entry to entry; the first is the most of the cool-down.

    since: when the observation began; it must be as long as the cool-down before a node may go.
    """

    since: float | None = None
    peaks: tuple[tuple[float, int], ...] = ()

    def add(self, now: float, needed: int, cooldown_seconds: float) -> History:
        """The history with one more observation, without what is older than the cool-down."""
        peaks = [p for p in self.peaks if p[1] > needed and now - p[0] <= cooldown_seconds]
        return History(now if self.since is None else self.since, (*peaks, (now, needed)))

    @property
    def most(self) -> int:
        """What was needed at the most."""
        return self.peaks[0][1] if self.peaks else 0

    def as_json(self) -> dict[str, Any]:
        """For the database."""
        return {"since": self.since, "peaks": [list(p) for p in self.peaks]}

    @classmethod
    def of(cls, value: dict[str, Any]) -> History:
        """What as_json gave."""
        return cls(value.get("since"), tuple((float(t), int(n)) for t, n in value.get("peaks", ())))


@dataclass(frozen=True)
class Decision:
    """What to do with a pool. needed: by the load alone, within the limits; target: what it should have now.

    desired: the group's new desired capacity, None to leave it. take_back: nodes that leave by our order and shall
    not. drain: idle nodes that go. terminate: those that are drained.
    """

    needed: int
    target: int
    desired: int | None = None
    take_back: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    terminate: tuple[str, ...] = ()
    history: History = field(default_factory=History)

    @property
    def acts(self) -> bool:
        """Whether there is anything to do."""
        return self.desired is not None or bool(self.take_back or self.drain or self.terminate)


def needed(limits: Limits, load: Load) -> int:
    """The nodes that the load asks for, whatever the limits."""
    late = max(1.0, load.oldest_wait_seconds / limits.target_wait_seconds)
    share = 1.0 if load.task_seconds is None else min(1.0, load.task_seconds / limits.target_wait_seconds * late)
    return math.ceil((load.running + load.queued + load.ready * share) / limits.slots - 1e-9)


def decide(limits: Limits, load: Load, history: History, now: float) -> Decision:
    """What to do at this moment (`now` in seconds of any clock that only goes forward)."""
    want = min(max(needed(limits, load), limits.minimum), limits.maximum)
    history = history.add(now, want, limits.cooldown_seconds)
    begun = history.since if history.since is not None else now
    settled = now - begun >= limits.cooldown_seconds
    target = max(want, history.most if settled else min(load.size, limits.maximum))
    decision = Decision(want, target, history=history)
    # A rollout counts on its surge: meanwhile the pool only grows, and never into the room that is the rollout's.
    if not load.rolling:
        over = tuple(n.id for n in load.nodes if n.state == "leaves" and n.over)
        decision = replace(decision, terminate=over)
    if load.size < want:
        return _up(limits, load, decision, want)
    if load.size > target and not load.rolling:
        idle = [n.id for n in load.staying if n.state == "serves" and not n.running]
        idle.reverse()  # the youngest first: the caches of old ones are full
        decision = replace(decision, drain=tuple(idle[: load.size - target]))
    return decision


def _up(limits: Limits, load: Load, decision: Decision, want: int) -> Decision:
    leaving = [n for n in load.nodes if n.state == "leaves" and not n.over]
    back = tuple(n.id for n in leaving[: want - load.size]) if not load.rolling else ()
    going = sum(n.state in ("leaves", "away") for n in load.nodes) - len(back)
    most = min(load.room, limits.maximum) if load.rolling else load.room
    desired = min(want + going, most)  # nodes on their way out still count for the group
    return replace(decision, take_back=back, desired=desired if desired > load.desired else None)


def reason(limits: Limits, load: Load, decision: Decision) -> str:
    """A decision in numbers, one line."""
    want, target = decision.needed, decision.target
    waits = f", the oldest for {load.oldest_wait_seconds:.1f} s" if load.ready else ""
    known = f", {load.task_seconds:.3g} s each" if load.ready and load.task_seconds is not None else ""
    held = f"; the most within {limits.cooldown_seconds:g} s was {target}" if target > want else ""
    return (
        f"{load.ready} ready{waits}{known}, {load.queued} queued, {load.running} running: "
        f"{needed(limits, load)} nodes of {limits.slots} slots, {limits.minimum} to {limits.maximum} allowed{held}"
    )


def merge(loads: Iterable[tuple[int, float | None]], target_wait_seconds: float) -> float | None:
    """The mean of (tasks, seconds each), each cut at the target wait; unknown ones (None) count with that.

    None if nothing is known of any of them.
    """
    found = list(loads)
    if all(seconds is None for _, seconds in found):
        return None
    total = sum(n for n, _ in found)
    return sum(n * min(target_wait_seconds if s is None else s, target_wait_seconds) for n, s in found) / total


def backlog_per_slot(waiting: int, running: int, slots: int, node_slots: int) -> float:
    """The figure for target tracking: tasks that wait or run for each slot. 1 is a fleet that is just full.

    Of a pool without a slot it is what it would be with one node, and above 1 as soon as anything waits: there is
    nothing to wait for but a node.
    """
    if slots:
        return (waiting + running) / slots
    return max(1.01, waiting / node_slots) if waiting else 0.0
