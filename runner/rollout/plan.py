"""The plan of a rollout: a pure function of the facts and the wish.

Strategy `replace`, batch by batch: more instances on the new release, wait until they serve, prove it by a heartbeat
run on each one's own queue, then drain as many old ones and terminate them with a capacity decrement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.rollout.facts import Facts
from runner.settings import RefusedError, UsageError


@dataclass(frozen=True)
class Wish:
    """What is wanted. Times in seconds: until a new node serves, until its heartbeat run is over, for a drain."""

    release: str
    batch: int = 1
    ready_seconds: float = 600.0
    heartbeat_seconds: float = 120.0
    drain_seconds: float = 3600.0


@dataclass(frozen=True)
class Step:
    """One thing to do, as data. The steps of one batch share its number."""

    action: str
    args: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The step in words."""
        a = self.args
        match self.action:
            case "tag":
                return f"new instances of {a['group']} take release {a['release']}"
            case "surge":
                return f"{a['count']} more in {a['group']}"
            case "wait_ready":
                return f"{a['count']} on {a['release']} registered and heard, within {a['limit_seconds']:g} s"
            case "heartbeat":
                return f"a heartbeat run on each of their queues succeeds, within {a['limit_seconds']:g} s"
            case "drain":
                return f"{', '.join(a['instances'])} take no more tasks and finish theirs"
            case "terminate":
                return f"{', '.join(a['instances'])} leave the group, with their capacity"
            case "untag":
                return f"new instances take release {a['release']} again unless one of {a['before']} is left"
            case "retreat":
                return f"{a['group']} goes back to {a['desired']}"
        return self.action


def plan(facts: Facts, wish: Wish) -> list[Step]:
    """The steps that move this pool to the wished release; empty if nothing differs.

    Raises UsageError for a batch below one, RefusedError if the group has no room for a surge.
    """
    if wish.batch < 1:
        raise UsageError(f"a batch of {wish.batch} moves nothing", "--batch 1 or more")
    group, old = facts.group, facts.outdated(wish.release)
    steps = []
    if group.release != wish.release:
        steps.append(Step("tag", {"group": group.name, "release": wish.release, "before": group.release}))
    batch = min(wish.batch, len(old))
    if batch and group.desired + batch > group.maximum:
        room = max(0, group.maximum - group.desired)
        raise RefusedError(
            f"{group.name} is at {group.desired} of {group.maximum} instances: no room for {batch} more",
            f"--batch {room}" if room else "raise max_workers of the pool and apply",
        )
    for number, first in enumerate(range(0, len(old), wish.batch), 1):
        leaving = old[first : first + wish.batch]
        steps += _batch(group.name, number, leaving, wish)
    return steps


def _batch(group: str, number: int, leaving: Sequence[str], wish: Wish) -> list[Step]:
    base: dict[str, Any] = {"batch": number, "group": group}
    gate = {**base, "count": len(leaving), "release": wish.release}
    return [
        Step("surge", {**base, "count": len(leaving)}),
        Step("wait_ready", {**gate, "limit_seconds": wish.ready_seconds}),
        Step("heartbeat", {**gate, "limit_seconds": wish.heartbeat_seconds}),
        Step("drain", {**base, "instances": list(leaving), "seconds": wish.drain_seconds}),
        Step("terminate", {**base, "instances": list(leaving)}),
    ]


def way_back(
    done: Sequence[tuple[Step, Mapping[str, Any]]],
    current: tuple[Step, Mapping[str, Any]] | None,
    *,
    failed: bool,
    drain_seconds: float,
) -> list[Step]:
    """The steps that leave the pool healthy after a failed gate or an abort. Pure.

    done: the steps that were done, with what they remembered; current: the one that failed or was under way. After a
    failure new instances take the old release again; after an abort only if no new one is left.
    """
    tags = [s.args for s, _ in [*done, *([current] if current else [])] if s.action == "tag" and s.args["before"]]
    back = {"group": tags[0]["group"], "release": tags[0]["before"], "before": tags[0]["release"]} if tags else None
    retreat = _retreat(done, current, drain_seconds)
    if failed:
        return [*([Step("tag", back)] if back else []), *retreat]
    return [*retreat, *([Step("untag", back)] if back else [])]


def _retreat(
    done: Sequence[tuple[Step, Mapping[str, Any]]], current: tuple[Step, Mapping[str, Any]] | None, drain_seconds: float
) -> list[Step]:
    steps: list[Step] = []
    if current is None:
        return steps
    number = current[0].args.get("batch")
    same = [(s, d) for s, d in [*done, current] if number is not None and s.args.get("batch") == number]
    surge = next(((s, d) for s, d in same if s.action == "surge"), None)
    if surge is not None and "desired" in surge[1]:
        step, memory = surge
        args = {
            "group": step.args["group"],
            "keep": memory["before"],
            "desired": memory["desired"],
            "old": next((s.args["instances"] for s, _ in same if s.action in ("drain", "terminate")), []),
            "seconds": drain_seconds,
        }
        steps.append(Step("retreat", args))
    return steps
