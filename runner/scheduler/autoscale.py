"""Duty: as many nodes as the load asks for.

What to do is decided by runner.rollout.autoscale.policy. A node leaves like any other: it is cordoned when it runs
nothing, its worker says `drained`, and its instance is terminated with a capacity decrement.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
from sqlalchemy import Connection, Engine

from runner.rollout.autoscale import pool as scaled_pools
from runner.rollout.autoscale.policy import Decision, History, Load, Node, decide, merge, reason
from runner.rollout.autoscale.pool import SLUICE, ScaledPool
from runner.rollout.cloud import Cloud, group_name
from runner.rollout.facts import Group
from runner.rollout.fleet import LiveFleet
from runner.scheduler.leader import Leader
from runner.settings import Settings, SluiceError
from runner.state import nodes, queries, scaling
from runner.state.queries import NodeRow, QueueRow

log = structlog.get_logger(__name__)

BY = "autoscaler"
LOOK_SECONDS = 1.0
GROUPS_SECONDS = 10.0  # how old the knowledge of the groups may be while nothing is done
RECORD_SECONDS = 10.0
STALE_SECONDS = 60.0  # what a former leader has seen counts if it was seen within this time


@dataclass
class _Known:
    """What a leader remembers of a pool."""

    history: History
    recorded_at: float = 0.0
    shown: tuple[int, int, int] = (-1, -1, -1)


class Autoscaling(Leader):
    """Scales the pools of one environment whose group has the tag Scaling = sluice, while it leads."""

    def __init__(self, engine: Engine, cloud: Callable[[], Cloud], settings: Settings) -> None:
        super().__init__(engine, "autoscale", LOOK_SECONDS)
        self._make_cloud = cloud
        self._settings = settings
        self._prefix = group_name(settings.env, "worker", "")
        self._groups: list[Group] = []
        self._groups_at = float("-inf")
        self._known: dict[str, _Known] = {}

    @functools.cached_property
    def _cloud(self) -> Cloud:
        return self._make_cloud()  # in this thread: it takes a while

    def begin(self, connection: Connection) -> None:
        """Go on where the leader before has stopped, if that is not long ago: the cool-down goes on."""
        rows = scaling.pools(connection)
        self._known = {r.pool: _Known(History.of(r.history)) for r in rows if r.age_seconds < STALE_SECONDS}
        self._groups_at = float("-inf")

    def trouble(self) -> None:
        """What is known of the groups may be wrong."""
        self._groups_at = float("-inf")

    # --- one look -------------------------------------------------------------------------------------------------

    def look(self, connection: Connection) -> None:
        """Look at all pools once and do what there is to do."""
        if time.monotonic() - self._groups_at >= GROUPS_SECONDS:
            self._ask_groups()
            scaling.forget(connection, [p.name for _, p in self._pools()])
        pools = self._pools()
        if pools:
            self._look_at(connection, pools)

    def _look_at(self, connection: Connection, pools: Sequence[tuple[Group, ScaledPool]]) -> None:
        now = scaling.now(connection)
        queues = queries.queues(connection)
        rolling = scaling.rolling(connection)
        fleet = queries.fleet(connection, role="worker", pools=[p.name for _, p in pools])
        for group, pool in pools:
            known = self._known.setdefault(pool.name, _Known(History()))
            waits = [q for q in queues if q.queue in pool.queues]
            load = load_of(group, waits, [n for n in fleet if n.pool == pool.name], rolling=pool.name in rolling)
            if load.ready:
                lately = merge(scaling.durations(connection, pool.queues), pool.limits.target_wait_seconds)
                load = replace(load, task_seconds=lately)
            decision = decide(pool.limits, load, known.history, now)
            if decision.acts:
                # On what the group is now: the knowledge of it may be some seconds old.
                group = self._refresh(group)
                load = replace(load, **_of_group(group, fleet, pool.name))
                decision = decide(pool.limits, load, known.history, now)
            known.history = decision.history
            done = self._act(pool, group, load, decision, fleet)
            self._record(connection, pool, load, decision, known, now, done)
            self._bury(pool, group, fleet)

    def _act(
        self, pool: ScaledPool, group: Group, load: Load, decision: Decision, fleet: Sequence[NodeRow]
    ) -> list[str]:
        """Carry a decision out; what was done, in words."""
        done = []
        by_instance = {i: n.node_id for i, n in _by_instance(fleet).items()}
        if decision.take_back:
            with self._engine.begin() as connection:
                back = [i for i in decision.take_back if nodes.uncordon(connection, by_instance[i], by=BY)]
            done += [f"{_names(back)} taken back"] if back else []
        desired = group.desired
        if decision.desired is not None:
            self._cloud.set_desired(pool.group, decision.desired)
            done.append(f"desired capacity {group.desired} → {decision.desired}")
            desired = decision.desired
        closed = []
        for instance in decision.drain:
            why = f"idle, {load.size} nodes and {decision.target} needed"
            with self._engine.begin() as connection:
                if scaling.drain_idle(
                    connection,
                    by_instance[instance],
                    reason=why,
                    by=BY,
                    deadline_seconds=float(self._settings.drain_seconds),
                ):
                    closed.append(instance)
        done += [f"{_names(closed)} drained"] if closed else []
        for instance in decision.terminate:
            # At the minimum the group replaces it: AWS would refuse to take the capacity away.
            self._cloud.terminate(instance, decrement=desired > group.minimum)
            desired -= desired > group.minimum
        done += [f"{_names(decision.terminate)} terminated"] if decision.terminate else []
        if decision.acts:
            self._groups_at = float("-inf")
        return done

    def _bury(self, pool: ScaledPool, group: Group, fleet: Sequence[NodeRow]) -> None:
        """Write off the nodes that we let go and whose machine is dead, where their agent could not say so."""
        left = [
            node.instance_id
            for node in fleet
            if node.pool == pool.name and node.requested_by == BY and node.state in ("draining", "drained")
            if not node.live and group.find(node.instance_id) is None
        ]
        if left:
            LiveFleet(self._engine, self._cloud, self._settings, "worker", pool.name).gone(left)

    def _record(
        self,
        connection: Connection,
        pool: ScaledPool,
        load: Load,
        decision: Decision,
        known: _Known,
        now: float,
        done: Sequence[str],
    ) -> None:
        shown = (load.size, decision.needed, decision.target)
        if not done and shown == known.shown and now - known.recorded_at < RECORD_SECONDS:
            return
        why = reason(pool.limits, load, decision)
        event = f"{'; '.join(done)}: {why}" if done else ""
        values = {
            "minimum": pool.limits.minimum,
            "maximum": pool.limits.maximum,
            "size": load.size,
            "needed": decision.needed,
            "target": decision.target,
            "reason": why,
            "history": decision.history.as_json(),
        }
        scaling.record(connection, pool.name, values, event=event)
        known.recorded_at, known.shown = now, shown
        if done:
            log.info("; ".join(done), action="autoscale", pool=pool.name, why=why)

    # --- the groups -----------------------------------------------------------------------------------------------

    def _ask_groups(self) -> None:
        self._groups = self._cloud.groups(self._prefix)
        self._groups_at = time.monotonic()

    def _refresh(self, group: Group) -> Group:
        self._ask_groups()
        return next((g for g in self._groups if g.name == group.name), group)

    def _pools(self) -> list[tuple[Group, ScaledPool]]:
        """The pools that are ours to scale. One whose tags make no sense is left alone, and said once."""
        found = []
        for group in self._groups:
            try:
                pool = scaled_pools.of_group(group, self._prefix)
                self.quiet(group.name)
            except SluiceError as e:
                self.once(group.name, f"{e.message}: {e.hint}")
                continue
            if pool is not None and pool.by == SLUICE:
                found.append((group, pool))
        return found


def _names(instances: Sequence[str]) -> str:
    more = len(instances) - 3
    return f"{', '.join(instances[:3])} and {more} more" if more > 0 else ", ".join(instances)


def load_of(group: Group, queues: Sequence[QueueRow], fleet: Sequence[NodeRow], *, rolling: bool) -> Load:
    """What the policy is to see of a pool: its group, its queues and its nodes. Pure."""
    return Load(
        ready=sum(q.ready for q in queues),
        queued=sum(q.queued for q in queues),
        oldest_wait_seconds=max((q.oldest_wait_seconds or 0.0 for q in queues), default=0.0),
        rolling=rolling,
        **_of_group(group, fleet, ""),
    )


def _of_group(group: Group, fleet: Sequence[NodeRow], pool: str) -> dict[str, Any]:
    own = [n for n in fleet if not pool or n.pool == pool]
    rows, running = _by_instance(own), Counter[str]()
    for n in own:
        running[n.instance_id] += n.running
    members = [i.instance_id for i in group.instances if not i.leaving]
    members.sort(key=lambda i: (rows[i].registered_at.timestamp() if i in rows else float("inf"), i))
    return {
        "nodes": tuple(_node(i, rows.get(i), running[i]) for i in members),
        "desired": group.desired,
        "room": group.maximum,
    }


def _by_instance(fleet: Sequence[NodeRow]) -> dict[str, NodeRow]:
    """The node that each instance is. While it changes its release in place it has two: the one that serves counts."""
    found: dict[str, NodeRow] = {}
    for row in fleet:  # oldest first
        if row.state == "ready" or row.instance_id not in found or found[row.instance_id].state != "ready":
            found[row.instance_id] = row
    return found


def _node(instance_id: str, row: NodeRow | None, running: int) -> Node:
    if row is None or row.state == "booting":
        return Node(instance_id, "boots", running)
    if row.state == "ready":
        return Node(instance_id, "serves", running)
    if row.requested_by != BY:
        return Node(instance_id, "away", running)
    # A node that is not heard and runs nothing need not be waited for.
    over = not running and (row.state in ("drained", "gone") or not row.live)
    return Node(instance_id, "leaves", running, over)
