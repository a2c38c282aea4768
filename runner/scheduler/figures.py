"""Duty: CloudWatch's figures. The heartbeat that an alarm waits for, and what target tracking can scale a pool by.

Once a minute, by one scheduler, and only where SLUICE_CLOUDWATCH is set. Namespace `Sluice`:
`Heartbeat` {Env}: heartbeat runs that have succeeded since the last time.
`BacklogPerSlot` {Env, Pool}: tasks that wait or run for each slot, of pools with the tag Scaling = target-tracking.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import boto3
import structlog
from botocore.config import Config
from sqlalchemy import Connection, Engine, text

from runner.rollout.autoscale import pool as scaled_pools
from runner.rollout.autoscale.policy import backlog_per_slot
from runner.rollout.autoscale.pool import TARGET_TRACKING, ScaledPool
from runner.rollout.cloud import Cloud, group_name
from runner.rollout.fleet import HEARTBEAT_DAG
from runner.scheduler.leader import Leader
from runner.settings import Settings, SluiceError
from runner.state import nodes, queries, transitions
from runner.state.queries import NodeRow, QueueRow

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient

log = structlog.get_logger(__name__)

NAMESPACE = "Sluice"
EVERY_SECONDS = 60.0

# The runs of this duty and those of rollouts: each proves that a node takes work and hands back a result.
_SUCCEEDED = text("""
SELECT count(*) FROM dag_run
WHERE dag_id = :dag AND state = 'success' AND run_type = 'heartbeat'
  AND logical_date > now() - interval '1 hour' AND ended_at > now() - make_interval(secs => :seconds)
""")


class Figures(Leader):
    """Publishes, and starts a heartbeat run a minute so that there is a beat to publish."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        cloud: Callable[[], Cloud] | None = None,
        client: Callable[[], CloudWatchClient] | None = None,
    ) -> None:
        super().__init__(engine, "figures", EVERY_SECONDS)
        self._env = settings.env
        self._make_cloud = cloud or (lambda: Cloud(settings.region))
        self._make_client = client or (lambda: _client(settings.region))
        self._turn = 0

    @functools.cached_property
    def _cloud(self) -> Cloud:
        return self._make_cloud()

    @functools.cached_property
    def _cloudwatch(self) -> CloudWatchClient:
        return self._make_client()

    def look(self, connection: Connection) -> None:
        """Publish what there is, then start the run that the next look will find."""
        fleet = [n for n in queries.fleet(connection, role="worker") if n.live and n.state == "ready"]
        queues = queries.queues(connection)
        beats = connection.execute(_SUCCEEDED, {"dag": HEARTBEAT_DAG, "seconds": EVERY_SECONDS * 1.5}).scalar_one()
        data = [heartbeat(self._env, beats, workers=len(fleet), waiting=sum(q.ready + q.queued for q in queues))]
        data += [backlog(self._env, p, queues, fleet) for p in self._pools()]
        self._start_beat(fleet)
        for start in range(0, len(data), 1000):  # AWS takes no more at once
            self._cloudwatch.put_metric_data(Namespace=NAMESPACE, MetricData=data[start : start + 1000])

    def _start_beat(self, fleet: Sequence[NodeRow]) -> None:
        """A heartbeat run on the next worker's own queue: a pool that may be empty is not woken by it."""
        if not fleet:
            return
        self._turn += 1
        node = sorted(fleet, key=lambda n: n.node_id)[self._turn % len(fleet)]
        with self._engine.begin() as connection:
            at = dt.datetime.now(dt.UTC)
            transitions.create_run(
                connection, HEARTBEAT_DAG, at, run_type="heartbeat", queue=nodes.queue_of(node.node_id)
            )

    def _pools(self) -> list[ScaledPool]:
        prefix, found = group_name(self._env, "worker", ""), []
        for group in self._cloud.groups(prefix):
            try:
                pool = scaled_pools.of_group(group, prefix)
            except SluiceError as e:
                self.once(group.name, f"{e.message}: {e.hint}")
                continue
            if pool is not None and pool.by == TARGET_TRACKING:
                found.append(pool)
        return found


def heartbeat(env: str, beats: int, *, workers: int, waiting: int) -> Any:
    """The heartbeat's figure. A fleet that is empty because nothing waits is well: that the figure comes says so."""
    resting = not workers and not waiting
    return _datum("Heartbeat", {"Env": env}, float(max(beats, 1) if resting else beats), "Count")


def backlog(env: str, pool: ScaledPool, queues: Sequence[QueueRow], fleet: Sequence[NodeRow]) -> Any:
    """A pool's figure for target tracking."""
    own = [q for q in queues if q.queue in pool.queues]
    slots = sum(n.slots for n in fleet if n.pool == pool.name)
    waiting, running = sum(q.ready + q.queued for q in own), sum(q.running for q in own)
    value = backlog_per_slot(waiting, running, slots, pool.limits.slots)
    return _datum("BacklogPerSlot", {"Env": env, "Pool": pool.name}, value, "None")


def _datum(name: str, dimensions: dict[str, str], value: float, unit: str) -> Any:
    named = [{"Name": k, "Value": v} for k, v in dimensions.items()]
    return {"MetricName": name, "Dimensions": named, "Value": value, "Unit": unit}


def _client(region: str) -> CloudWatchClient:
    config = Config(connect_timeout=3, read_timeout=15, retries={"mode": "standard", "max_attempts": 3})
    client: CloudWatchClient = boto3.client("cloudwatch", region_name=region, config=config)
    return client
