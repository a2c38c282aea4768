"""The plan of a rollout: a pure function of the facts and the wish.

Strategy `replace`, batch by batch: more instances on the new release, wait until they serve, prove it by a heartbeat
run on each one's own queue and by how their tasks fare, then drain as many old ones and terminate them with a capacity
decrement. Strategy `in-place`: each node of a batch is told to change to the new release, beside the old one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.rollout.facts import Facts
from runner.settings import RefusedError, UsageError

STRATEGIES = ("replace", "in-place")


@dataclass(frozen=True)
class Wish:
    """What is wanted. Times in seconds: until a new node serves, until its heartbeat run is over, for a drain.

    batch: nodes at once, or a share like "25%". surge: how many more machines than before while a batch goes on; None:
    as many as the batch has. canary: size of the first batch, 0: as the others; bake_seconds: how long its nodes are
    watched beside the old ones. wait: past its deadline a drain goes on. gate_commands, gate_promql (URL, query): what
    else has to hold before old nodes go. before: what the pool ran, for the way back. stay: a failed gate stops and
    changes nothing back. force: also where no node is healthy.
    """

    release: str
    batch: int | str = 1
    ready_seconds: float = 600.0
    heartbeat_seconds: float = 120.0
    drain_seconds: float = 3600.0
    strategy: str = "replace"
    surge: int | None = None
    canary: int = 0
    bake_seconds: float = 0.0
    wait: bool = False
    gate_commands: tuple[str, ...] = ()
    gate_promql: tuple[tuple[str, str], ...] = ()
    before: str = ""
    stay: bool = False
    force: bool = False

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Wish:
        """The wish as it was filed; what is not part of it is ignored."""
        known = {f.name for f in dataclasses.fields(cls)}
        kept = {k: v for k, v in stored.items() if k in known}
        kept["gate_commands"] = tuple(kept.get("gate_commands", ()))
        kept["gate_promql"] = tuple((url, query) for url, query in kept.get("gate_promql", ()))
        return cls(**kept)


@dataclass(frozen=True)
class Step:
    """One thing to do, as data. The steps of one batch share its number."""

    action: str
    args: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The step in words."""
        a = self.args
        match self.action:
            case "schema":
                return f"schema: {', '.join(a['revisions'])} ({a['phase']})" + (
                    ", once no node of another release is left" if a["phase"] == "post" else ""
                )
            case "tag":
                template = f" and template {a['template']}" if a.get("template") else ""
                return f"new instances of {a['group']} take release {a['release']}{template}"
            case "surge":
                return f"{a['count']} more in {a['group']}" if a["count"] else f"{a['group']} stays as large as it is"
            case "order":
                return f"{', '.join(a['instances'])} start {a['release']} beside what they run, which drains and stops"
            case "relieve":
                return f"what {', '.join(a['instances'])} ran before finishes its tasks and stops"
            case "wait_ready":
                return f"{a['count']} on {a['release']} registered and heard, within {a['limit_seconds']:g} s"
            case "heartbeat":
                return f"a heartbeat run on each of their queues succeeds, within {a['limit_seconds']:g} s"
            case "bake":
                asked = [*a["commands"], *(query for _, query in a["promql"])]
                watched = f"for {a['seconds']:g} s " if a["seconds"] else ""
                and_ = f"; and {'; '.join(asked)}" if asked else ""
                return f"{watched}they fail no more tasks than the old ones{and_}"
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

    Raises UsageError for a wish that moves nothing, RefusedError if the group has no room for a surge, if no node is
    healthy, or if release and schema do not go together.
    """
    _check_schema(facts, wish)
    group = facts.group
    old = _outdated(facts, wish)
    steps = []
    if group.release != wish.release:
        tag = {"group": group.name, "release": wish.release, "before": group.release}
        steps.append(Step("tag", {**tag, **_templates(facts)}))
    sizes = _sizes(wish, len(old))
    if old and not wish.force and not facts.serving():
        raise RefusedError(
            f"none of the {len(old)} nodes of {group.name} is healthy: nothing would show whether {wish.release} is",
            "see `deployctl fleet status`; --force rolls all the same, which is how a broken pool gets its repair",
        )
    surge = max((_surge(wish, size) for size in sizes), default=0)
    if surge and group.desired + surge > group.maximum:
        room = max(0, group.maximum - group.desired)
        raise RefusedError(
            f"{group.name} is at {group.desired} of {group.maximum} instances: no room for {surge} more",
            (f"--surge {room}, " if room else "")
            + "--surge 0 (old nodes go before new ones come), or raise max_workers of the pool and apply",
        )
    for number, size in enumerate(sizes, 1):
        leaving, old = old[:size], old[size:]
        batch = _in_place if wish.strategy == "in-place" else _replace
        steps += batch(facts, number, leaving, wish)
    if not steps:
        return []
    return [*_schema(facts, wish, "pre"), *steps, *_schema(facts, wish, "post")]


def batch_size(batch: int | str, nodes: int) -> int:
    """A count, or a share of the nodes (at least one). Raises UsageError for what is neither."""
    text = str(batch).strip()
    if not re.fullmatch(r"\d+%?", text):
        raise UsageError(f"a batch of {text!r} is neither a count nor a share", "--batch 2, or --batch 25%")
    share = int(text.rstrip("%"))
    if share < 1 or (text.endswith("%") and share > 100):
        raise UsageError(f"a batch of {text} moves nothing" if share < 1 else f"{text} is more than all", "--batch 1")
    return max(1, nodes * share // 100) if text.endswith("%") else share


def _outdated(facts: Facts, wish: Wish) -> list[str]:
    old = facts.outdated(wish.release)
    if wish.strategy == "in-place":  # a machine does not change its template by changing its software
        members = {i.instance_id: i for i in facts.group.instances}
        return [i for i in old if facts.runs(members[i]) != wish.release]
    return old


def _sizes(wish: Wish, nodes: int) -> list[int]:
    if wish.strategy not in STRATEGIES:
        raise UsageError(f"no strategy {wish.strategy!r}", f"--strategy {' or '.join(STRATEGIES)}")
    size = batch_size(wish.batch, nodes)
    if wish.canary < 0 or (wish.surge or 0) < 0:
        raise UsageError("a canary or a surge of less than nothing", "--canary 1, --surge 0")
    first = min(wish.canary or size, nodes)
    rest = nodes - first
    return [n for n in [first, *([size] * (rest // size)), rest % size] if n]


def _surge(wish: Wish, size: int) -> int:
    return 0 if wish.strategy == "in-place" else size if wish.surge is None else min(wish.surge, size)


def _replace(facts: Facts, number: int, leaving: Sequence[str], wish: Wish) -> list[Step]:
    group = facts.group.name
    base: dict[str, Any] = {"batch": number, "group": group}
    surge = _surge(wish, len(leaving))
    go = [Step("terminate", {**base, "instances": list(leaving)})]
    if facts.role != "web":  # a web node serves on until its load balancer has let go of it: its agent drains it then
        drain = {
            **base,
            "instances": list(leaving),
            "seconds": wish.drain_seconds,
            **({"wait": True} if wish.wait else {}),
        }
        go.insert(0, Step("drain", drain))
    steps = [Step("surge", {**base, "count": surge, "leaving": list(leaving)})]
    gate = {**base, "release": wish.release}
    if surge == len(leaving):
        return [*steps, *_gate(facts, {**gate, "count": surge}, number, wish), *go]
    # The new ones that there is room for have to prove themselves before the first old one goes.
    if surge:
        steps += _gate(facts, {**gate, "count": surge}, number, dataclasses.replace(wish, bake_seconds=0.0))
    return [*steps, *go, *_gate(facts, {**gate, "count": len(leaving)}, number, wish)]


def _in_place(facts: Facts, number: int, changing: Sequence[str], wish: Wish) -> list[Step]:
    base: dict[str, Any] = {"batch": number, "group": facts.group.name}
    order = {**base, "instances": list(changing), "release": wish.release, "seconds": wish.drain_seconds}
    order = {**order, **({"wait": True} if wish.wait else {})}
    gate = {**base, "count": len(changing), "release": wish.release, "instances": list(changing)}
    return [Step("order", order), *_gate(facts, gate, number, wish), Step("relieve", order)]


def _gate(facts: Facts, args: dict[str, Any], number: int, wish: Wish) -> list[Step]:
    """What stands between new nodes and the end of old ones."""
    steps = [Step("wait_ready", {**args, "limit_seconds": wish.ready_seconds})]
    bake = wish.bake_seconds if number == 1 else 0.0
    if facts.role == "worker":
        steps.append(Step("heartbeat", {**args, "limit_seconds": wish.heartbeat_seconds}))
    if facts.role == "worker" or bake or wish.gate_commands or wish.gate_promql:
        asked = {"commands": list(wish.gate_commands), "promql": [list(q) for q in wish.gate_promql]}
        steps.append(Step("bake", {**args, "seconds": bake, **asked}))
    return steps


def _templates(facts: Facts) -> dict[str, Any]:
    """The template that outdated members came from, where it is another than the group's."""
    now = facts.group.template
    others = [i.template for i in facts.group.instances if not i.leaving and i.template not in ("", now)]
    return {"template_before": max(sorted(set(others)), key=others.count)} if others and now else {}


def _check_schema(facts: Facts, wish: Wish) -> None:
    if facts.schema.ahead:
        raise RefusedError(
            f"release {wish.release} is older than the schema: it still uses what {', '.join(facts.schema.ahead)} "
            "took away",
            "roll to a release that knows these revisions",
        )
    if facts.schema.pre and facts.schema.blocked:
        raise RefusedError(
            f"the schema of {wish.release} needs {', '.join(facts.schema.blocked)} first, "
            f"which the running release {facts.before(wish.release) or '?'} cannot live with",
            "roll to the release in between first",
        )


def _schema(facts: Facts, wish: Wish, phase: str) -> list[Step]:
    revisions = facts.schema.pre if phase == "pre" else facts.schema.post
    if not revisions:
        return []
    return [Step("schema", {"phase": phase, "release": wish.release, "revisions": list(revisions)})]
