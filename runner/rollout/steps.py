"""The actions of a plan. Each may be repeated at any point: it looks at what is, and does what is missing.

An action returns at once: Done, Waiting (ask again), or Failed (the gate says no). `detail` is what it remembers, and
is kept with the step before and after.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.rollout import checks, gate
from runner.rollout.facts import Facts, Group
from runner.rollout.protocol import Fleet
from runner.settings import SluiceError

DRAIN_MARGIN_SECONDS = 120.0  # for the agent to end what is over its time; after that the machine is ended
ENDLESS_SECONDS = 10 * 365 * 86_400.0  # the deadline of a drain that has none
LOOK_SECONDS = 5.0  # between two looks at how the tasks fare
MISSING_SECONDS = 300.0  # for the group to replace a new node that has died while it was watched
LAUNCH_SECONDS = 10.0  # between two questions why an instance does not come
GATES = ("surge", "wait_ready", "heartbeat", "bake")  # trouble in these turns the rollout back


@dataclass(frozen=True)
class Context:
    """What an action knows beside the fleet.

    batch: what the earlier steps of its batch remembered, by action. mark: where the history of this rollout begins.
    leaving: the machines that earlier batches have told to go; None while more batches are to come.
    """

    rollout_id: int
    release: str
    by: str
    args: Mapping[str, Any]
    started_at: dt.datetime
    detail: Mapping[str, Any] = field(default_factory=dict)
    batch: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    age: float = 0.0
    mark: int = 0
    leaving: Sequence[str] | None = None

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
    """The gate says no. `blame`: whether the release is no good (it is taken back), or what it should run on is not."""

    error: str
    detail: dict[str, Any] = field(default_factory=dict)
    blame: bool = True


Outcome = Done | Waiting | Failed


def remember(
    fleet: Fleet, action: str, args: Mapping[str, Any], release: str, batch: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What a step has to know of the fleet as it was before the step; recorded before the step acts."""
    if action == "terminate":
        return _who_goes(fleet.facts(), args["instances"], release, int(batch["surge"]["desired"]))
    if action == "order":
        facts = fleet.facts()
        members = [i for i in facts.group.instances if i.instance_id in args["instances"]]
        return {"before": {i.instance_id: facts.runs(i) for i in members}, "mark": fleet.mark()}
    if action != "surge":
        return {}
    group = fleet.group()
    # What has left by itself before its turn came is replaced already: nobody new comes for it.
    here = sum(1 for i in args["leaving"] if (member := group.find(i)) and not member.leaving)
    return {
        "mark": fleet.mark(),
        "here": here,
        "before": [i.instance_id for i in group.instances],
        "desired": group.desired,
        "target": group.desired + min(int(args["count"]), here),
    }


def tag(fleet: Fleet, context: Context) -> Outcome:
    """What instances launched from now on will run, and from which template."""
    fleet.set_release(context.args["release"])
    if context.args.get("template"):
        try:
            fleet.set_template(context.args["template"])
        except SluiceError as e:
            return Done({"trouble": e.message})  # the release is what matters; the template is for a person then
    return Done()


def schema(fleet: Fleet, context: Context) -> Outcome:
    """Run the release's migrations of one phase. `post` is left to a later rollout while nodes of others are there."""
    if context.args["phase"] == "post" and (others := fleet.others(context.args["release"])):
        return Done({"left": others})
    fleet.migrate(context.args["release"], context.args["phase"])
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
        return Failed(error, dict(context.detail), blame=False)
    if group.desired < target:
        fleet.set_desired(target)
    return Done(dict(context.detail))


def wait_ready(fleet: Fleet, context: Context) -> Outcome:
    """The new nodes have registered with the new release and are heard."""
    facts, before, only = fleet.facts(), *_whom(context)
    count, limit = _count(context), float(context.args["limit_seconds"])
    ready = gate.new_nodes(facts, before, context.args["release"], only)
    seen = gate.newcomers(facts, before, only)
    tried = sorted({*context.detail.get("tried", []), *seen})
    detail = {"ready": [n.node_id for n in ready], "seen": seen, "tried": tried}
    if facts.role == "worker":  # each is tried as it comes, and not only when the last one has come
        detail["runs"] = {n.node_id: fleet.heartbeat(n.node_id, context.started_at) for n in ready}
    if len(ready) >= count:
        return Done(detail)
    asked, said = context.detail.get("asked", 0.0), context.detail.get("trouble", "")
    if len(seen) < count and only is None and context.age - asked >= LAUNCH_SECONDS:
        asked, said = round(context.age, 1), fleet.launch_error(context.started_at)
    if only is not None:
        said = next((f"{i}: {e}" for i in only if (e := fleet.order_error(i))), "")
        asked = 0.0
    if said and (only is not None or len(seen) < count):
        detail["trouble"] = said
    if asked:
        detail["asked"] = asked
    if context.age > limit:
        error = gate.ready_error(count, len(ready), context.age, seen, tried)
        # Without a machine to run on, nothing is known against the release.
        blame = only is not None or "trouble" not in detail
        return Failed(f"{error}: {said}" if "trouble" in detail else error, detail, blame)
    return Waiting(detail)


def heartbeat(fleet: Fleet, context: Context) -> Outcome:
    """A run of the heartbeat DAG on each new node's own queue succeeds. A node that comes later gets one too."""
    count, limit = _count(context), float(context.args["limit_seconds"])
    before, only = _whom(context)
    nodes = gate.new_nodes(fleet.facts(), before, context.args["release"], only)
    begun = context.batch.get("wait_ready", {}).get("runs", {})
    ids = {n.node_id: begun.get(n.node_id) or fleet.heartbeat(n.node_id, context.started_at) for n in nodes}
    runs = {node: fleet.run_state(run) for node, run in ids.items()}
    detail = {"runs": ids, "states": {n: r.state for n, r in runs.items()}}
    if error := gate.heartbeat_error(count, context.age, limit, runs):
        return Failed(error, detail)
    good = sum(r.state == "success" for r in runs.values())
    return Done(detail) if good >= count else Waiting(detail)


def bake(fleet: Fleet, context: Context) -> Outcome:
    """The new nodes stay for as long as they are watched, fail no more tasks than the old ones, and all else holds."""
    args, (before, only) = context.args, _whom(context)
    count, seconds = _count(context), float(args["seconds"])
    over, detail = context.age >= seconds, {k: v for k, v in context.detail.items() if k != "trouble"}
    there = [n.node_id for n in gate.new_nodes(fleet.facts(), before, args["release"], only)]
    if len(there) < count:
        missing = detail.setdefault("missing_since", round(context.age, 1))
        if context.age - missing > MISSING_SECONDS:
            return Failed(f"{len(there)} of {count} new nodes are left after {context.age:.0f} s", detail)
        return Waiting(detail)
    detail.pop("missing_since", None)
    if not over and context.age - detail.get("looked", -LOOK_SECONDS) < LOOK_SECONDS:
        return Waiting(detail)
    detail["looked"] = round(context.age, 1)
    new, old = fleet.tallies(args["release"], context.mark)
    detail["new"], detail["old"] = [new.failed, new.ended], [old.failed, old.ended]
    if error := gate.failure_error(new, old, final=over):
        return Failed(error, detail)
    if not over:
        return Waiting(detail)
    env = {"SLUICE_ROLL": str(context.rollout_id), "SLUICE_ROLL_RELEASE": args["release"]}
    if said := checks.failing(args["commands"], args["promql"], {**env, "SLUICE_ROLL_NODES": " ".join(there)}):
        return Failed("; ".join(said), detail)
    return Done(detail)


def order(fleet: Fleet, context: Context) -> Outcome:
    """Tell each node what it shall run; its agent starts the new release beside the old, which drains and stops."""
    args = context.args
    seconds = ENDLESS_SECONDS if args.get("wait") else float(args["seconds"])
    for instance in args["instances"]:
        release = args.get("releases", {}).get(instance, args["release"])
        fleet.order(instance, release, reason=context.reason, by=context.by, seconds=seconds)
    return Done(dict(context.detail))


def relieve(fleet: Fleet, context: Context) -> Outcome:
    """What ran on the changed nodes before has finished its tasks and stopped. Its agent holds the deadline."""
    args, facts = context.args, fleet.facts()
    seconds = float(args["seconds"])
    left = {}
    for instance in args["instances"]:
        release = args.get("releases", {}).get(instance, args["release"])
        others = [n for n in facts.on(instance) if n.release != release and n.state not in ("drained", "gone")]
        if any(n.fresh or n.running for n in others) and facts.group.find(instance) is not None:
            left[instance] = sum(n.running for n in others)
    late = context.age > seconds
    if left and late and not args.get("wait") and context.age > seconds + DRAIN_MARGIN_SECONDS:
        return Done({"left": left, "forced": True})
    if not left:
        return Done({"left": {}})
    return Waiting({"left": left, **({"late": True} if late and args.get("wait") else {})})


def drain(fleet: Fleet, context: Context) -> Outcome:
    """The old nodes take no more tasks and have finished theirs.

    Past the deadline the machine goes all the same, or, if the wish says so, whatever runs is waited for.
    """
    seconds, facts, wait = float(context.args["seconds"]), fleet.facts(), bool(context.args.get("wait"))
    limit = ENDLESS_SECONDS if wait else seconds
    left = {i: n for i in context.args["instances"] if (n := _running(fleet, facts, context, i, limit)) is not None}
    if left and context.age > limit + DRAIN_MARGIN_SECONDS:
        return Done({"left": left, "forced": True})
    if not left:
        return Done({"left": {}})
    return Waiting({"left": left, **({"late": True} if wait and context.age > seconds else {})})


def terminate(fleet: Fleet, context: Context) -> Outcome:
    """The drained instances leave the group, with the capacity that was added for them.

    One that had left by itself took no capacity with it; another one goes for it, drained like everybody. A machine
    takes its time to shut down: only the last batch waits until all of them, also those before it, are seen dead.
    """
    size, facts = int(context.batch["surge"]["desired"]), fleet.facts()
    instead = context.detail.get("instead", [])
    drained = [i for i in instead if _running(fleet, facts, context, i, ENDLESS_SECONDS) is None]
    left = [i for i in instead if i not in drained]
    staying = {i.instance_id for i in facts.group.instances if not i.leaving}
    before = [i for i in context.leaving or () if i not in staying and (facts.group.find(i) or facts.node(i))]
    alive = _remove(fleet, facts.group, [*before, *context.args["instances"], *drained], size)
    left += [i for i in alive if context.leaving is not None or i in staying]
    detail = {**context.detail, "left": left}
    return Waiting(detail) if left else Done(detail)


def retreat(fleet: Fleet, context: Context) -> Outcome:
    """Leave the pool as large as it was, with nodes that serve.

    Old nodes that still drain take tasks again, those that are drained already go, and then as many of the newcomers
    go as the group is too large; drained first, like everybody.
    """
    old, keep, target = context.args["old"], set(context.args["keep"]), int(context.args["desired"])
    bad = context.args.get("bad")
    facts, drained = fleet.facts(), []
    for instance in old:
        node, member = facts.node(instance), facts.group.find(instance)
        if node is None or member is None or member.leaving:
            continue
        if node.state == "draining":
            fleet.uncordon(instance, by=context.by)
        elif node.state == "drained":
            drained.append(instance)
    _remove(fleet, facts.group, drained, target)
    group = fleet.group()
    extra = [i for i in group.instances if i.instance_id not in keep and not i.leaving]
    # Those that never got to work first.
    extra.sort(key=lambda i: (_serves(facts, i.instance_id), facts.runs(i) != bad, i.instance_id))
    too_many = max(0, group.desired - max(target, group.minimum))
    # Those beyond that are replaced by instances of the old release.
    going = [i for n, i in enumerate(extra) if n < too_many or (bad and facts.runs(i) == bad)]
    left, seconds = [i.instance_id for i in going], float(context.args["seconds"])
    idle = [i for i in left if _running(fleet, facts, context, i, seconds) is None or context.age > seconds]
    _remove(fleet, group, idle, target)
    group = fleet.group()
    smallest = max(target, group.minimum, sum(not i.leaving for i in group.instances))
    if not left and group.desired > smallest:
        fleet.set_desired(smallest)  # what could not be launched is not wanted any more
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
    left += _remove(fleet, group, sorted((leaving | lost) - set(left)), target)
    detail = {"left": left, "desired": group.desired}
    return Waiting(detail) if left else Done(detail)


def _running(fleet: Fleet, facts: Facts, context: Context, instance: str, seconds: float) -> int | None:
    """Cordon a node and return how many tasks it still runs; None once there is nothing to wait for."""
    if facts.group.find(instance) is None:
        return None
    here = facts.on(instance)
    if not here or any(n.state in ("booting", "ready") for n in here):
        # Also before it has registered: it would be ready the moment it does.
        fleet.cordon(instance, reason=context.reason, by=context.by, seconds=seconds)
        return sum(n.running for n in here)
    if all(n.state in ("drained", "gone") or (not n.fresh and not n.running) for n in here):
        return None
    return sum(n.running for n in here)


def _whom(context: Context) -> tuple[Collection[str], Collection[str] | None]:
    """Who is new: all but those who were there before the surge, or only the nodes that were told to change."""
    return context.batch.get("surge", {}).get("before", ()), context.args.get("instances")


def _count(context: Context) -> int:
    """How many new nodes there have to be."""
    count = int(context.args["count"])
    return min(count, int(context.batch.get("surge", {}).get("here", count)))


def _who_goes(facts: Facts, instances: Collection[str], release: str, size: int) -> dict[str, Any]:
    """Who goes instead of those that have left by themselves: their group has replaced them, and is too large.

    Old nodes first: they would be next anyhow. Nobody, if somebody has made the group smaller meanwhile.
    """
    group = facts.group
    here = [i for i in instances if (member := group.find(i)) and not member.leaving]
    surplus = group.desired - max(size, group.minimum) - len(here)
    others = [i for i in group.instances if not i.leaving and i.instance_id not in instances]
    others.sort(key=lambda i: facts.runs(i) == release)
    instead = [i.instance_id for i in others[: max(0, min(surplus, len(instances) - len(here)))]]
    return {"instead": instead} if instead else {}


def _remove(fleet: Fleet, group: Group, instances: Sequence[str], size: int) -> list[str]:
    """Terminate those of these instances that do not leave already; returns who is not dead yet by the cloud's word.

    Their capacity goes with them as long as the group is larger than `size`; beyond that they are replaced.
    """
    desired = group.desired
    members = {i: member for i in instances if (member := group.find(i))}
    for instance, member in members.items():
        if not member.leaving:
            # At the minimum AWS refuses to take the capacity away: somebody raised it, a replacement is wanted.
            smaller = desired > max(size, group.minimum)
            fleet.terminate(instance, decrement=smaller)
            desired -= smaller
    away = [i for i in instances if i not in members]
    dead = fleet.gone(away) if away else ()
    return [i for i in instances if i not in dead]


def _serves(facts: Facts, instance: str) -> bool:
    node = facts.node(instance)
    return node is not None and node.state == "ready" and node.fresh


ACTIONS: dict[str, Callable[[Fleet, Context], Outcome]] = {
    "schema": schema,
    "tag": tag,
    "untag": untag,
    "surge": surge,
    "wait_ready": wait_ready,
    "heartbeat": heartbeat,
    "bake": bake,
    "order": order,
    "relieve": relieve,
    "drain": drain,
    "terminate": terminate,
    "retreat": retreat,
}
