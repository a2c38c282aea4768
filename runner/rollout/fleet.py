"""One pool as it is: its group in the cloud and its nodes in the database, behind the interface of the steps."""

from __future__ import annotations

import datetime as dt
import zlib
from collections.abc import Callable, Collection, Sequence

from sqlalchemy import Connection, Engine, text

from runner.rollout import published, schema
from runner.rollout.cloud import Cloud, group_name
from runner.rollout.facts import Facts, Group, NodeFact
from runner.rollout.gate import RunState, Tally
from runner.rollout.sign import trusted
from runner.settings import Settings, SluiceError
from runner.state import nodes, orders, queries, transitions
from runner.storage import Storage

HEARTBEAT_DAG = "sluice_heartbeat"
_FARED = text("""
SELECT n.release = :release AS new, count(*) AS ended, count(*) FILTER (WHERE e.state <> 'success') AS failed
FROM event e JOIN node n USING (node_id) JOIN dag_run r ON r.id = e.run_id
WHERE e.id > :after AND e.kind = 'task' AND n.role = :role AND n.pool = :pool AND r.run_type <> 'heartbeat'
  AND (e.state IN ('success', 'failed') OR e.state IN ('ready', 'up_for_retry') AND e.detail LIKE 'will be retried%')
GROUP BY 1
""")


class LiveFleet:
    """A pool of an environment. `guard` is called before anything is done to the cloud, and raises to forbid it."""

    def __init__(
        self,
        engine: Engine,
        cloud: Cloud,
        settings: Settings,
        role: str,
        pool: str,
        *,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self.cloud = cloud
        self.settings = settings
        self.role = role
        self.pool = pool
        self.name = group_name(settings.env, role, pool)
        self.guard = guard

    def facts(self) -> Facts:
        """The group first, then the nodes: a node that registers in between is seen without its machine, and waits."""
        group = self.cloud.group(self.name)
        with self.engine.connect() as connection:
            rows = queries.fleet(connection, role=self.role, pools=[self.pool])
        found = tuple(NodeFact(n.node_id, n.instance_id, n.state, n.release, n.live, n.running) for n in rows)
        return Facts(self.role, self.pool, group, found)

    def group(self) -> Group:
        return self.cloud.group(self.name)

    def set_release(self, release: str) -> None:
        self.guard()
        self.cloud.set_release(self.name, release)

    def set_template(self, version: str) -> None:
        self.guard()
        self.cloud.set_template(self.name, version)

    def set_desired(self, count: int) -> None:
        self.guard()
        self.cloud.set_desired(self.name, count)

    def launch_error(self, since: dt.datetime) -> str:
        """Why the group could not launch an instance since then; "" if it could, or says nothing."""
        return self.cloud.launch_error(self.name, since)

    def terminate(self, instance_id: str, *, decrement: bool) -> None:
        self.guard()
        self.cloud.terminate(instance_id, decrement=decrement)

    def cordon(self, instance_id: str, *, reason: str, by: str, seconds: float) -> None:
        """Close the node of this instance; one that has not registered yet will find itself draining when it does."""
        with self.engine.begin() as connection:
            found = self._nodes(connection, instance_id)
            if not found:
                found = [instance_id]
                info = nodes.NodeInfo(instance_id, self.role, self.pool, "", "", instance_id=instance_id)
                nodes.register(connection, info, state="booting")
                # It was not heard: what counts as silent need not be waited for.
                connection.execute(text("DELETE FROM node_heartbeat WHERE node_id = :id"), {"id": instance_id})
            for node_id in found:
                nodes.cordon(connection, node_id, reason=reason, by=by, deadline_seconds=seconds)

    def uncordon(self, instance_id: str, *, by: str) -> None:
        """The last node of this instance takes tasks again."""
        with self.engine.begin() as connection:
            for node_id in self._nodes(connection, instance_id)[-1:]:
                nodes.uncordon(connection, node_id, by=by)

    def gone(self, instance_ids: Sequence[str]) -> set[str]:
        """Those of these machines that are dead by the cloud's word, which is written down."""
        dead = set(instance_ids) - self.cloud.existing(instance_ids)
        with self.engine.begin() as connection:
            for instance_id in sorted(dead):
                for node_id in self._nodes(connection, instance_id):
                    nodes.gone(connection, node_id, cause="the instance is terminated")
        return dead

    def heartbeat(self, node_id: str, at: dt.datetime) -> int:
        """The heartbeat run of this node for a step that began `at`: created once, found again after a crash."""
        # A logical date belongs to one run of a DAG, so each node has its own microsecond.
        date = at + dt.timedelta(microseconds=zlib.crc32(node_id.encode()) % 1_000_000)
        queue = nodes.queue_of(node_id)
        with self.engine.begin() as connection:
            for _ in range(100):
                run = transitions.create_run(connection, HEARTBEAT_DAG, date, run_type="heartbeat", queue=queue)
                run = run if run is not None else _run_of(connection, date, queue)
                if run is not None:
                    return run
                if not _dag_exists(connection):
                    raise SluiceError(
                        f"the DAG {HEARTBEAT_DAG} is not registered", "a scheduler registers it when it starts"
                    )
                date += dt.timedelta(microseconds=1)  # another node's
        raise SluiceError(f"no free logical date for a heartbeat run of {node_id} near {at}")

    def run_state(self, run_id: int) -> RunState:
        with self.engine.connect() as connection:
            row = connection.execute(
                text("""
                SELECT r.state, t.state AS task, t.error FROM dag_run r LEFT JOIN task_instance t ON t.run_id = r.id
                WHERE r.id = :id ORDER BY t.id LIMIT 1"""),
                {"id": run_id},
            ).one()
        return RunState(row.state, row.error or f"task {row.task}")

    def end_runs(self, run_ids: Collection[int]) -> None:
        """End those of these runs that have not ended."""
        with self.engine.begin() as connection:
            found = connection.execute(
                text("SELECT id FROM dag_run WHERE id = ANY (:ids) AND state NOT IN ('success', 'failed')"),
                {"ids": list(run_ids)},
            ).scalars()
            for run_id in list(found):
                transitions.end_run(connection, run_id, why="the roll it belongs to is over")

    def mark(self) -> int:
        """The last event there is."""
        with self.engine.connect() as connection:
            return int(connection.execute(text("SELECT coalesce(max(id), 0) FROM event")).scalar_one())

    def tallies(self, release: str, after: int) -> tuple[Tally, Tally]:
        """How the tasks of this pool fared after an event: on the nodes of this release, and on the others."""
        with self.engine.connect() as connection:
            rows = connection.execute(
                _FARED, {"after": after, "role": self.role, "pool": self.pool, "release": release}
            ).all()
        found = {bool(row.new): Tally(row.ended, row.failed) for row in rows}
        return found.get(True, Tally()), found.get(False, Tally())

    def migrate(self, release: str, phase: str) -> None:
        """Run what the release brings of this phase."""
        self.guard()
        storage = Storage.open(self.settings.artifacts_url, region=self.settings.region)
        archive = published.fetch(storage, release, trusted(self.settings.release_key))
        schema.upgrade(archive, self.engine, phase)

    def others(self, release: str) -> list[str]:
        """Nodes of any role that run another release."""
        with self.engine.connect() as connection:
            return [n.node_id for n in queries.fleet(connection) if n.release != release and n.state != "drained"]

    def order(self, instance_id: str, release: str, *, reason: str, by: str, seconds: float) -> None:
        """Tell the machine to change to this release beside the one it runs."""
        self.guard()
        with self.engine.begin() as connection:
            orders.give(connection, instance_id, release, reason=reason, by=by, drain_seconds=seconds)

    def order_error(self, instance_id: str) -> str:
        """Why the machine cannot do as it was told, as its agent has found last; "" if it can."""
        with self.engine.connect() as connection:
            order = orders.find(connection, instance_id)
        return (order.error or "") if order else ""

    def _nodes(self, connection: Connection, instance_id: str) -> list[str]:
        """The nodes of this instance that are not gone, oldest first."""
        found = connection.execute(
            text(
                "SELECT node_id FROM node WHERE (instance_id = :id OR node_id = :id) AND state <> 'gone'"
                " ORDER BY registered_at, node_id"
            ),
            {"id": instance_id},
        )
        return list(found.scalars())


def _run_of(connection: Connection, date: dt.datetime, queue: str) -> int | None:
    run: int | None = connection.execute(
        text("""
        SELECT r.id FROM dag_run r JOIN task_instance t ON t.run_id = r.id
        WHERE r.dag_id = :dag AND r.logical_date = :date AND t.queue = :queue LIMIT 1"""),
        {"dag": HEARTBEAT_DAG, "date": date, "queue": queue},
    ).scalar()
    return run


def _dag_exists(connection: Connection) -> bool:
    found = connection.execute(text("SELECT 1 FROM dag WHERE dag_id = :dag AND active"), {"dag": HEARTBEAT_DAG})
    return found.scalar() is not None
