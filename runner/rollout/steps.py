"""The actions of a plan. Each may be repeated at any point: it looks at what is, and does what is missing.

An action returns at once: Done, Waiting (ask again), or Failed (the gate says no). `detail` is what it remembers, and
is kept with the step before and after.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from runner.rollout import gate
from runner.rollout.facts import Facts, Group

DRAIN_MARGIN_SECONDS = 120.0  # for the agent to end what is over its time; after that the machine is ended
GATES = ("surge", "wait_ready", "heartbeat")  # trouble in these turns the rollout back


class Fleet(Protocol):
    """One pool's machines and nodes, as the steps touch them."""

    def facts(self) -> Facts: ...

    def group(self) -> Group: ...

    def set_release(self, release: str) -> None: ...

    def set_desired(self, count: int) -> None: ...

    def terminate(self, instance_id: str, *, decrement: bool) -> None: ...

    def cordon(self, instance_id: str, *, reason: str, by: str, seconds: float) -> None: ...

    def uncordon(self, instance_id: str, *, by: str) -> None: ...

    def gone(self, instance_id: str) -> bool: ...

    def heartbeat(self, node_id: str, at: dt.datetime) -> int: ...

    def run_state(self, run_id: int) -> gate.RunState: ...


@dataclass(frozen=True)
class Context:
    """What an action knows beside the fleet. `batch`: what the earlier steps of its batch remembered, by action."""

    rollout_id: int
    release: str
    by: str
    args: Mapping[str, Any]
    started_at: dt.datetime
    detail: Mapping[str, Any] = field(default_factory=dict)
    batch: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    age: float = 0.0

    @property
    def reason(self) -> str:
        """Why nodes drain."""
        return f"roll {self.rollout_id} to {self.release}"


@dataclass(frozen=True)
class Done:
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Waiting:
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    error: str
    detail: dict[str, Any] = field(default_factory=dict)


Outcome = Done | Waiting | Failed


def remember(fleet: Fleet, action: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """What a step has to know of the fleet as it was before the step; recorded before the step acts."""
    if action != "surge":
        return {}
    group = fleet.group()
    return {
        "before": [i.instance_id for i in group.instances],
        "desired": group.desired,
        "target": group.desired + int(args["count"]),
    }


def tag(fleet: Fleet, context: Context) -> Outcome:
    """What instances launched from now on will run."""
    fleet.set_release(context.args["release"])
    return Done()


def untag(fleet: Fleet, context: Context) -> Outcome:
    """Back to the old release for what is launched from now on, unless the new one stays in the pool."""
    facts = fleet.facts()
    stays = [i.instance_id for i in facts.group.instances if not i.leaving and facts.runs(i) == context.args["before"]]
    if not stays:
        fleet.set_release(context.args["release"])
    return Done({"stays": stays})


def surge(fleet: Fleet, context: Context) -> Outcome:
    """As many more instances. More than that (somebody raised it meanwhile) is fine too."""
    group, target = fleet.group(), int(context.detail["target"])
    if target > group.maximum:
        error = f"{group.name} may have {group.maximum} instances, {target} are needed"
        return Failed(error, dict(context.detail))
    if group.desired < target:
        fleet.set_desired(target)
    return Done(dict(context.detail))


def wait_ready(fleet: Fleet, context: Context) -> Outcome:
    """The new nodes have registered with the new release and are heard."""
    facts, before = fleet.facts(), context.batch["surge"]["before"]
    count, limit = int(context.args["count"]), float(context.args["limit_seconds"])
    ready = gate.new_nodes(facts, before, context.args["release"])
    seen = gate.newcomers(facts, before)
    tried = sorted({*context.detail.get("tried", []), *seen})
    detail = {"ready": [n.node_id for n in ready], "seen": seen, "tried": tried}
    if len(ready) >= count:
        return Done(detail)
    if context.age > limit:
        return Failed(gate.ready_error(count, len(ready), context.age, seen, tried), detail)
    return Waiting(detail)


def heartbeat(fleet: Fleet, context: Context) -> Outcome:
    """A run of the heartbeat DAG on each new node's own queue succeeds. A node that comes later gets one too."""
    count, limit = int(context.args["count"]), float(context.args["limit_seconds"])
    nodes = gate.new_nodes(fleet.facts(), context.batch["surge"]["before"], context.args["release"])
    ids = {n.node_id: fleet.heartbeat(n.node_id, context.started_at) for n in nodes}
    runs = {node: fleet.run_state(run) for node, run in ids.items()}
    detail = {"runs": ids, "states": {n: r.state for n, r in runs.items()}}
    if error := gate.heartbeat_error(count, context.age, limit, runs):
        return Failed(error, detail)
    good = sum(r.state == "success" for r in runs.values())
    return Done(detail) if good >= count else Waiting(detail)


def drain(fleet: Fleet, context: Context) -> Outcome:
    """The old nodes take no more tasks and have finished theirs. Past the deadline the machine goes all the same."""
    seconds, facts = float(context.args["seconds"]), fleet.facts()
    left = {i: n for i in context.args["instances"] if (n := _running(fleet, facts, context, i, seconds)) is not None}
    if left and context.age > seconds + DRAIN_MARGIN_SECONDS:
        return Done({"left": left, "forced": True})
    return Waiting({"left": left}) if left else Done({"left": {}})


def terminate(fleet: Fleet, context: Context) -> Outcome:
    """The drained instances have left the group with their capacity, and are seen dead."""
    left = [i for i in context.args["instances"] if not _removed(fleet, fleet.group(), i)]
    return Waiting({"left": left}) if left else Done({"left": []})


def retreat(fleet: Fleet, context: Context) -> Outcome:
    """Leave the pool as large as it was, with nodes that serve.

    Old nodes that still drain take tasks again, those that are drained already go, and then as many of the newcomers
    go as the group is too large; drained first, like everybody.
    """
    old, keep, target = context.args["old"], set(context.args["keep"]), int(context.args["desired"])
    facts, left = fleet.facts(), []
    for instance in old:
        node, member = facts.node(instance), facts.group.find(instance)
        if node is None or member is None or member.leaving:
            continue
        if node.state == "draining":
            fleet.uncordon(instance, by=context.by)
        elif node.state == "drained":
            _removed(fleet, fleet.group(), instance)
    group = fleet.group()
    extra = [i for i in group.instances if i.instance_id not in keep and not i.leaving]
    extra.sort(key=lambda i: (_serves(facts, i.instance_id), i.instance_id))  # those that never got to work first
    for newcomer in extra[: max(0, group.desired - max(target, group.minimum))]:
        left.append(newcomer.instance_id)
        seconds = float(context.args["seconds"])
        if _running(fleet, facts, context, newcomer.instance_id, seconds) is None or context.age > seconds:
            _removed(fleet, fleet.group(), newcomer.instance_id)
    group = fleet.group()
    leaving = {i.instance_id for i in group.instances if i.leaving}
    # A node whose machine is not in the group any more is dead as soon as the cloud says so.
    lost = {
        n.instance_id
        for n in facts.nodes
        if n.state in ("draining", "drained")
        and (n.instance_id in old or n.instance_id not in keep)
        and group.find(n.instance_id) is None
    }
    left += [i for i in sorted((leaving | lost) - set(left)) if not _removed(fleet, group, i)]
    detail = {"left": left, "desired": group.desired}
    return Waiting(detail) if left else Done(detail)


def _running(fleet: Fleet, facts: Facts, context: Context, instance: str, seconds: float) -> int | None:
    """Cordon a node and return how many tasks it still runs; None once there is nothing to wait for."""
    if facts.group.find(instance) is None:
        return None
    node = facts.node(instance)
    if node is None or node.state in ("booting", "ready"):
        # Also before it has registered: it would be ready the moment it does.
        fleet.cordon(instance, reason=context.reason, by=context.by, seconds=seconds)
        return node.running if node else 0
    if node.state in ("drained", "gone") or (not node.fresh and not node.running):
        return None
    return node.running


def _removed(fleet: Fleet, group: Group, instance: str) -> bool:
    """Terminate an instance unless it leaves already; True once the cloud says that it is dead."""
    member = group.find(instance)
    if member is None:
        return fleet.gone(instance)
    if not member.leaving:
        # At the minimum AWS refuses to take the capacity away: somebody raised it, a replacement is wanted.
        fleet.terminate(instance, decrement=group.desired > group.minimum)
    return False


def _serves(facts: Facts, instance: str) -> bool:
    node = facts.node(instance)
    return node is not None and node.state == "ready" and node.fresh


ACTIONS: dict[str, Callable[[Fleet, Context], Outcome]] = {
    "tag": tag,
    "untag": untag,
    "surge": surge,
    "wait_ready": wait_ready,
    "heartbeat": heartbeat,
    "drain": drain,
    "terminate": terminate,
    "retreat": retreat,
}
