"""The gate between batches: may the old nodes go? Pure, with the numbers in every answer."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from runner.rollout.facts import Facts, NodeFact

MIN_SAMPLE = 20  # tasks on the new nodes; fewer say nothing
ALPHA = 0.01  # how often a release that is no worse may be taken for one that is
# A bake is looked at again and again, and each look is another chance to be wrong; before its end only what is beyond
# doubt counts.
EARLY_ALPHA = 1e-6


@dataclass(frozen=True)
class RunState:
    """A heartbeat run: its state, and what its task says if it has not succeeded."""

    state: str
    detail: str = ""


@dataclass(frozen=True)
class Tally:
    """How the tasks of some nodes fared: how many ended, and how many of these failed (also if they are retried)."""

    ended: int = 0
    failed: int = 0


def new_nodes(
    facts: Facts, before: Collection[str], release: str, only: Collection[str] | None = None
) -> list[NodeFact]:
    """The nodes that serve this release now: those that were not there before the surge, or `only` these."""
    members = {i.instance_id for i in facts.group.instances if not i.leaving and i.served}
    members = members - set(before) if only is None else members & set(only)
    return [
        n for n in facts.nodes if n.instance_id in members and n.release == release and n.state == "ready" and n.fresh
    ]


def newcomers(facts: Facts, before: Collection[str], only: Collection[str] | None = None) -> dict[str, str]:
    """Instance → how far it is, for those that were not there before the surge, or `only` these."""
    out = {}
    for instance in facts.group.instances:
        if instance.instance_id in before if only is None else instance.instance_id not in only:
            continue
        node = facts.node(instance.instance_id)
        if node is None:
            said = "not registered"
        else:
            said = f"node {node.state} on {node.release}" + ("" if node.fresh else ", not heard")
            said += "" if instance.served else ", the load balancer does not find it healthy"
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


def failure_error(new: Tally, old: Tally, *, final: bool) -> str | None:
    """Why the new release fails too many tasks, None if it does not, or if too few have ended to say so.

    final: the bake is over. The test is Fisher's, one-sided: how likely would so many of the failures have hit the new
    nodes if it made no difference where a task runs.
    """
    if new.ended < MIN_SAMPLE or not new.failed:
        return None
    p, alpha = fisher(new, old), ALPHA if final else EARLY_ALPHA
    if p >= alpha:
        return None
    return (
        f"{new.failed} of {new.ended} tasks failed on the new release, {old.failed} of {old.ended} on the old one "
        f"(p = {p:.1g}, one-sided exact test; less than {alpha:g} is too much)"
    )


def fisher(new: Tally, old: Tally) -> float:
    """Fisher's exact test, one-sided: the chance of at least `new.failed` failures on the new nodes, all margins given.

    R. A. Fisher, Statistical Methods for Research Workers, 1934, section 21.02: a hypergeometric tail. In logarithms,
    because the counts may be millions.
    """
    n, failures, total = new.ended, new.failed + old.failed, new.ended + old.ended
    highest = min(n, failures)
    logs = [
        _log_choose(failures, k) + _log_choose(total - failures, n - k) - _log_choose(total, n)
        for k in range(new.failed, highest + 1)
        if n - k <= total - failures
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
