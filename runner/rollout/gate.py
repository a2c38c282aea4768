"""The gate between batches: may the old nodes go? Pure, with the numbers in every answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from runner.rollout.facts import Facts, NodeFact


@dataclass(frozen=True)
class RunState:
    """A heartbeat run: its state, and what its task says if it has not succeeded."""

    state: str
    detail: str = ""


def new_nodes(facts: Facts, before: Collection[str], release: str) -> list[NodeFact]:
    """The nodes that were not there before the surge and serve this release now."""
    members = {i.instance_id for i in facts.group.instances if not i.leaving} - set(before)
    return [
        n for n in facts.nodes if n.instance_id in members and n.release == release and n.state == "ready" and n.fresh
    ]


def newcomers(facts: Facts, before: Collection[str]) -> dict[str, str]:
    """Instance → how far it is, for those that were not there before the surge."""
    out = {}
    for instance in facts.group.instances:
        if instance.instance_id in before:
            continue
        node = facts.node(instance.instance_id)
        if node is None:
            said = "not registered"
        else:
            said = f"node {node.state} on {node.release}" + ("" if node.fresh else ", not heard")
        out[instance.instance_id] = f"{instance.lifecycle}, {said}"
    return out


def ready_error(count: int, ready: int, seconds: float, seen: Mapping[str, str], tried: Collection[str]) -> str:
    """Why the new nodes count as not coming."""
    now = "; ".join(f"{i}: {how}" for i, how in sorted(seen.items())) or "no new instance"
    return f"{ready} of {count} new nodes ready after {seconds:.0f} s, {len(tried)} instances tried ({now})"


def heartbeat_error(count: int, seconds: float, limit: float, runs: Mapping[str, RunState]) -> str | None:
    """Why the new nodes are no good, None as long as they may still be or are.

    One failed run is enough; a run that does not end counts once the limit is over.
    """
    failed = {n: r for n, r in runs.items() if r.state == "failed"}
    if failed:
        node, run = sorted(failed.items())[0]
        return f"heartbeat run failed on {len(failed)} of {len(runs)} new nodes ({node}: {run.detail})"
    good = sum(r.state == "success" for r in runs.values())
    if good >= count or seconds <= limit:
        return None
    open_ = "; ".join(f"{n}: {r.detail or r.state}" for n, r in sorted(runs.items()) if r.state != "success")
    return f"{good} of {count} heartbeat runs succeeded after {seconds:.0f} s ({open_ or 'no new node is left'})"
