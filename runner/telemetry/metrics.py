"""Metrics for Prometheus: what the database says of queues, nodes and runs, read at each scrape.

Every number follows the work under way and the nodes that are there; none is counted over the history. The names end
in their base unit, and in `_total` where the number only grows. All web processes give the same numbers, so a rule
takes max over them and never sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import structlog
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from runner.state import queries, scaling
from runner.state.queries import NodeRow, QueueRow
from runner.state.scaling import PoolScalingRow

log = structlog.get_logger(__name__)

TIMEOUT_SECONDS = 5  # a slow database must not hold a scrape: Prometheus gives up after ten


class DatabaseCollector(Collector):
    """The numbers of one database. Away, it says `sluice_database_up 0` and nothing else."""

    def __init__(self, engine: Engine, *, release: str, env: str) -> None:
        self._engine = engine
        self._build = {"release": release, "env": env}

    def collect(self) -> Iterator[Metric]:
        """One metric after another, all of one moment."""
        yield InfoMetricFamily("sluice_build", "What this web process runs.", value=self._build)
        up = GaugeMetricFamily("sluice_database_up", "Whether the metadata database answers: 1 or 0.")
        try:
            with self._engine.connect() as connection:
                connection.execute(text(f"SET LOCAL statement_timeout = '{TIMEOUT_SECONDS}s'"))
                queues = queries.queues(connection)
                nodes = queries.fleet(connection)
                runs = queries.runs_running(connection)
                pools = scaling.pools(connection)
                events = queries.last_event_id(connection)
        except SQLAlchemyError as e:
            log.warning("no metrics: the database is away", action="metrics", error=str(e).splitlines()[0])
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from of_queues(queues)
        yield from of_nodes(nodes)
        yield from of_pools(pools)
        running = GaugeMetricFamily("sluice_runs", "Runs under way.", labels=["state"])
        running.add_metric(["running"], runs)
        yield running
        yield CounterMetricFamily("sluice_events", "Transitions of tasks, runs, nodes and rollouts.", value=events)


def of_queues(queues: list[QueueRow]) -> Iterator[Metric]:
    """Depth, slots and waiting time by queue. Pure."""
    tasks = GaugeMetricFamily(
        "sluice_queue_tasks",
        "Tasks by state: ready (due now), delayed (due later), queued (on the broker), running.",
        labels=["queue", "state"],
    )
    slots = GaugeMetricFamily("sluice_queue_slots", "Slots of live workers that take tasks.", labels=["queue"])
    nodes = GaugeMetricFamily("sluice_queue_nodes", "Live workers that take tasks.", labels=["queue"])
    wait = GaugeMetricFamily(
        "sluice_queue_oldest_wait_seconds", "How long the oldest ready task has been due.", labels=["queue"]
    )
    interruptions = GaugeMetricFamily(
        "sluice_queue_interruptions",
        "Attempts that the infrastructure ended, of the tasks that are not over yet.",
        labels=["queue"],
    )
    for q in queues:
        for state in ("ready", "delayed", "queued", "running"):
            tasks.add_metric([q.queue, state], getattr(q, state))
        slots.add_metric([q.queue], q.slots)
        nodes.add_metric([q.queue], q.nodes)
        wait.add_metric([q.queue], max(0.0, q.oldest_wait_seconds or 0.0))
        interruptions.add_metric([q.queue], q.interruptions)
    yield from (tasks, slots, nodes, wait, interruptions)


def of_nodes(nodes: list[NodeRow]) -> Iterator[Metric]:
    """Nodes by state, and what each one says of itself. Pure."""
    count = GaugeMetricFamily("sluice_nodes", "Nodes that are not gone, by state.", labels=["role", "pool", "state"])
    labels = ["node", "role", "pool"]
    age = GaugeMetricFamily("sluice_node_heartbeat_age_seconds", "Since the node was last heard.", labels=labels)
    running = GaugeMetricFamily("sluice_node_running_tasks", "Tasks the node holds a lease for.", labels=labels)
    for (role, pool, state), n in Counter((n.role, n.pool, n.state) for n in nodes).items():
        count.add_metric([role, pool, state], n)
    for node in nodes:
        values = [node.node_id, node.role, node.pool]
        if node.heartbeat_age_seconds is not None:
            age.add_metric(values, max(0.0, node.heartbeat_age_seconds))
        if node.role == "worker":
            running.add_metric(values, node.running)
    yield from (count, age, running)


def of_pools(pools: list[PoolScalingRow]) -> Iterator[Metric]:
    """What the autoscaler thinks of each pool that it scales. Pure."""
    nodes = GaugeMetricFamily(
        "sluice_pool_nodes",
        "Nodes of a pool that is scaled: size (serve or boot), needed (by the load), target (with the cool-down), "
        "minimum and maximum.",
        labels=["pool", "of"],
    )
    age = GaugeMetricFamily(
        "sluice_pool_decision_age_seconds", "Since the autoscaler last looked at the pool.", labels=["pool"]
    )
    for pool in pools:
        for of in ("size", "needed", "target", "minimum", "maximum"):
            nodes.add_metric([pool.pool, of], getattr(pool, of))
        age.add_metric([pool.pool], max(0.0, pool.age_seconds))
    yield from (nodes, age)


def registry(engine: Engine, *, release: str, env: str) -> CollectorRegistry:
    """All metrics of a web process: the database's, and its own memory, processor time and open files."""
    found = CollectorRegistry()
    found.register(DatabaseCollector(engine, release=release, env=env))
    ProcessCollector(registry=found)
    PlatformCollector(registry=found)
    return found


def render(found: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics as text in the format that the client accepts, and its content type."""
    encode, content_type = choose_encoder(accept)
    return encode(found), content_type
