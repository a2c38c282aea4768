"""The tables. Times are UTC; states are the strings below, checked by the database as well."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

FINISHED = ("success", "failed", "skipped", "upstream_failed")
TASK_STATES = ("waiting", "ready", "queued", "running", "deferred", "up_for_retry", "expanded", *FINISHED)
# task: an ordinary one. sensor: waits in a scheduler. mapped: stands for its items. item: one of them. callback: of a
# run that has ended, and not counted in it.
TASK_KINDS = ("task", "sensor", "mapped", "item", "callback")
ORDERS = ("fail", "succeed", "skip", "restart")  # what a running task is to become when its process has been ended
RUN_STATES = ("queued", "running", "success", "failed")
BACKFILL_STATES = ("running", "paused", "cancelled", "done")
NODE_STATES = ("booting", "ready", "draining", "drained", "gone")
AFTER_DRAIN = ("", "terminate", "replace")  # nothing; end the machine, with its place in the group or without
ROLLOUT_STATES = ("running", "succeeded", "failed", "aborted")
STEP_STATES = ("pending", "running", "done", "failed")

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {
        str: Text,
        dt.datetime: TIMESTAMP(timezone=True),
        dict[str, Any]: JSONB,
        list[str]: ARRAY(Text),
        uuid.UUID: UUID,
    }


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(v) for v in values)})", name=column)


class Bundle(Base):
    """A published version of a directory of pipelines."""

    __tablename__ = "bundle"
    version: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]  # the directory's name: versions of one bundle replace each other
    url: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(server_default="")  # of the tar in the archive; '' ships with the release
    created_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    created_by: Mapped[str]


class Dag(Base):
    """A DAG and the bundle version its new runs take."""

    __tablename__ = "dag"
    dag_id: Mapped[str] = mapped_column(primary_key=True)
    bundle: Mapped[str]
    bundle_version: Mapped[str] = mapped_column(ForeignKey("bundle.version"))
    active: Mapped[bool] = mapped_column(server_default=text("true"))  # false: no longer in its bundle
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    schedule: Mapped[str | None]
    assets: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))  # those its runs wait for
    next_run_at: Mapped[dt.datetime | None]  # the next logical date; NULL without a schedule
    max_active_runs: Mapped[int | None]  # more wait as queued runs
    max_active_tasks: Mapped[int | None]  # over all its runs
    updated_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        Index("ix_dag_due", "next_run_at", postgresql_where=text("active AND NOT paused")),
        Index("ix_dag_assets", "assets", postgresql_using="gin"),
    )


class DagVersion(Base):
    """What a DAG looked like in one bundle version: authoring.spec.DagSpec as JSON."""

    __tablename__ = "dag_version"
    dag_id: Mapped[str] = mapped_column(primary_key=True)
    bundle_version: Mapped[str] = mapped_column(ForeignKey("bundle.version"), primary_key=True)
    spec: Mapped[dict[str, Any]]
    run_timeout_seconds: Mapped[float | None]
    notify: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))  # who is told about runs
    callbacks: Mapped[list[str]]  # tasks for a run's end: @on_success, @on_failure


class DagTask(Base):
    """One task of a DAG version, unfolded, so that creating a run is one INSERT … SELECT."""

    __tablename__ = "dag_task"
    dag_id: Mapped[str] = mapped_column(primary_key=True)
    bundle_version: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]  # task, sensor, mapped, callback
    queue: Mapped[str]
    priority: Mapped[int]
    max_tries: Mapped[int]
    retry_delay_seconds: Mapped[float]
    retry_backoff: Mapped[float]  # each delay is so many times the one before
    retry_max_delay_seconds: Mapped[float | None]
    retry_jitter: Mapped[float]  # the share of the delay that is left to chance, 0 to 1
    timeout_seconds: Mapped[float | None]
    trigger_rule: Mapped[str]
    inputs: Mapped[list[str]]  # upstream tasks whose return value it takes
    map_over: Mapped[list[Any]] = mapped_column(JSONB)  # of a mapped task: authoring.spec.TaskSpec.map_over
    sensor: Mapped[dict[str, Any] | None]  # of a sensor: what it waits for
    pool: Mapped[str | None]
    pool_slots: Mapped[int]
    max_active: Mapped[int | None]  # instances of it at work, over all runs
    depends_on_past: Mapped[bool]
    setup: Mapped[bool]
    on_lost: Mapped[str]  # retry, or hold: wait for proof that its node is dead
    execution: Mapped[dict[str, Any]]  # how its process is made: isolation, limits
    outlets: Mapped[list[str]]  # assets it updates
    notify: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))  # who is told about it
    upstream_total: Mapped[int]
    leaf: Mapped[bool]
    __table_args__ = (
        ForeignKeyConstraint(
            ["dag_id", "bundle_version"],
            ["dag_version.dag_id", "dag_version.bundle_version"],
            ondelete="CASCADE",
        ),
    )


class DagEdge(Base):
    """upstream → downstream of one DAG version."""

    __tablename__ = "dag_edge"
    dag_id: Mapped[str] = mapped_column(primary_key=True)
    bundle_version: Mapped[str] = mapped_column(primary_key=True)
    upstream: Mapped[str] = mapped_column(primary_key=True)
    downstream: Mapped[str] = mapped_column(primary_key=True)
    __table_args__ = (
        ForeignKeyConstraint(
            ["dag_id", "bundle_version"],
            ["dag_version.dag_id", "dag_version.bundle_version"],
            ondelete="CASCADE",
        ),
    )


class DagRun(Base):
    """One run of a DAG for one logical date. It keeps the bundle version it started with."""

    __tablename__ = "dag_run"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    dag_id: Mapped[str]
    bundle_version: Mapped[str] = mapped_column(ForeignKey("bundle.version"))
    logical_date: Mapped[dt.datetime]
    interval_start: Mapped[dt.datetime]
    interval_end: Mapped[dt.datetime]
    run_type: Mapped[str]  # scheduled, manual, heartbeat
    params: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    state: Mapped[str] = mapped_column(server_default="running")
    priority: Mapped[int] = mapped_column(server_default=text("0"))  # added to that of its tasks
    triggers: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)  # of an asset's run: the events behind it
    queue: Mapped[str | None]  # all its tasks go here, whatever the DAG says
    task_filter: Mapped[list[str] | None]  # only these tasks; NULL: all
    unfinished: Mapped[int]
    failed_leaves: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[dt.datetime | None]
    deadline_at: Mapped[dt.datetime | None]  # it may not run longer
    ended_at: Mapped[dt.datetime | None]
    __table_args__ = (
        UniqueConstraint("dag_id", "logical_date"),
        _one_of("state", RUN_STATES),
        Index("ix_dag_run_recent", "created_at"),
        Index("ix_dag_run_running", "id", postgresql_where=text("state = 'running'")),
        Index("ix_dag_run_active", "dag_id", "state", "id", postgresql_where=text("state IN ('queued', 'running')")),
        Index("ix_dag_run_deadline", "deadline_at", postgresql_where=text("state = 'running'")),
        Index("ix_dag_run_failed", "id", postgresql_where=text("state = 'failed'")),
    )


class TaskInstance(Base):
    """One task of one run.

    `attempt` numbers the dispatches and, with the id, is the whole message on the broker. `tries` counts the
    attempts that have ended by themselves, well or not; an interrupted one raises `interruptions` instead.
    `lease_token` is the fencing token: every write of a running attempt names it.

    The upstream tasks of a mapped task that has expanded are its items: the counters count those then.
    """

    __tablename__ = "task_instance"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    run_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("dag_run.id", ondelete="CASCADE"))
    dag_id: Mapped[str]
    task_id: Mapped[str]
    map_index: Mapped[int] = mapped_column(server_default=text("-1"))
    map_lengths: Mapped[list[int] | None] = mapped_column(ARRAY(Integer))  # of a mapped task that has expanded
    bundle_version: Mapped[str]
    kind: Mapped[str] = mapped_column(server_default="task")
    state: Mapped[str]
    queue: Mapped[str]
    priority: Mapped[int]
    trigger_rule: Mapped[str]
    leaf: Mapped[bool]
    setup: Mapped[bool] = mapped_column(server_default=text("false"))
    # A limit of its own, of its DAG or of a pool counts it: ready, it waits to be admitted.
    limited: Mapped[bool] = mapped_column(server_default=text("false"))
    admitted: Mapped[bool] = mapped_column(server_default=text("true"))
    past_blocked: Mapped[bool] = mapped_column(server_default=text("false"))  # waits for itself in the run before
    upstream_total: Mapped[int]
    waiting_on: Mapped[int]
    upstream_failed: Mapped[int] = mapped_column(server_default=text("0"))
    upstream_skipped: Mapped[int] = mapped_column(server_default=text("0"))
    setups_ok: Mapped[int] = mapped_column(server_default=text("0"))  # upstream setup tasks that succeeded
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    tries: Mapped[int] = mapped_column(server_default=text("0"))
    max_tries: Mapped[int]
    interruptions: Mapped[int] = mapped_column(server_default=text("0"))
    timeout_seconds: Mapped[float | None]
    available_at: Mapped[dt.datetime | None]  # of a retry that waits for its delay
    ready_at: Mapped[dt.datetime | None]
    queued_at: Mapped[dt.datetime | None]
    waiting_since: Mapped[dt.datetime | None]  # of one that has deferred itself: when it first ran
    lease_token: Mapped[uuid.UUID | None]
    lease_expires_at: Mapped[dt.datetime | None]
    node_id: Mapped[str | None]
    ordered: Mapped[str | None]  # what a person or a deadline wants of a running task
    started_at: Mapped[dt.datetime | None]
    ended_at: Mapped[dt.datetime | None]
    error: Mapped[str | None]
    __table_args__ = (
        UniqueConstraint("run_id", "task_id", "map_index"),
        _one_of("state", TASK_STATES),
        _one_of("kind", TASK_KINDS),
        CheckConstraint("(state = 'running') = (lease_token IS NOT NULL)", name="lease"),
        # Partial: their size follows the work under way, never the history. What a free slot may take:
        Index(
            "ix_task_instance_due",
            "queue",
            text("priority DESC"),
            "id",
            postgresql_where=text("state IN ('ready', 'queued') AND admitted"),
        ),
        # what waits for a limit, by what it is limited by
        Index(
            "ix_task_instance_limited",
            "dag_id",
            "task_id",
            text("priority DESC"),
            "id",
            postgresql_where=text("state = 'ready' AND NOT admitted"),
        ),
        # and what a limit counts.
        Index(
            "ix_task_instance_counted",
            "dag_id",
            "task_id",
            postgresql_where=text("limited AND (state IN ('queued', 'running') OR (state = 'ready' AND admitted))"),
        ),
        Index(
            "ix_task_instance_inflight",
            "queue",
            "state",
            postgresql_where=text("state IN ('queued', 'running')"),
        ),
        Index("ix_task_instance_node", "node_id", postgresql_where=text("state = 'running'")),
        Index("ix_task_instance_deferred", "id", postgresql_where=text("state = 'deferred'")),
        Index("ix_task_instance_retry", "available_at", postgresql_where=text("state = 'up_for_retry'")),
        Index("ix_task_instance_past", "dag_id", postgresql_where=text("state = 'waiting' AND past_blocked")),
    )


class Backfill(Base):
    """A wish to run a DAG for a span of past instants: what it consists of is in `backfill_run`."""

    __tablename__ = "backfill"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    dag_id: Mapped[str]
    which: Mapped[str]  # missing, failed, all
    state: Mapped[str] = mapped_column(server_default="running")
    max_active: Mapped[int]
    priority: Mapped[int]
    tasks: Mapped[list[str] | None]
    total: Mapped[int]
    created_by: Mapped[str]
    created_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[dt.datetime | None]
    __table_args__ = (
        _one_of("state", BACKFILL_STATES),
        Index("ix_backfill_running", "id", postgresql_where=text("state = 'running'")),
    )


class BackfillRun(Base):
    """One instant of a backfill, in the order it is to be run; `run_id` once it is under way."""

    __tablename__ = "backfill_run"
    backfill_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("backfill.id", ondelete="CASCADE"), primary_key=True
    )
    seq: Mapped[int] = mapped_column(primary_key=True)
    logical_date: Mapped[dt.datetime]
    interval_start: Mapped[dt.datetime]
    interval_end: Mapped[dt.datetime]
    again: Mapped[bool]  # its run exists and is cleared, else it is created
    started: Mapped[bool] = mapped_column(server_default=text("false"))
    run_id: Mapped[int | None] = mapped_column(BigInteger)
    __table_args__ = (
        Index("ix_backfill_run_waiting", "backfill_id", "seq", postgresql_where=text("NOT started")),
        Index("ix_backfill_run_run", "run_id", postgresql_where=text("run_id IS NOT NULL")),
    )


class XCom(Base):
    """A task's return value, passed to the tasks that take it."""

    __tablename__ = "xcom"
    run_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("dag_run.id", ondelete="CASCADE"), primary_key=True)
    task_id: Mapped[str] = mapped_column(primary_key=True)
    map_index: Mapped[int] = mapped_column(primary_key=True, server_default=text("-1"))
    value: Mapped[Any | None] = mapped_column(JSONB)  # a small value; a large one is in storage, at `url`
    url: Mapped[str | None]
    length: Mapped[int | None]  # of a list at `url`: how many items


class Notification(Base):
    """A message to one receiver. Its key names the occasion, so that none is written down twice."""

    __tablename__ = "notification"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    receiver: Mapped[str]  # the name of a connection, or a URL
    occasion: Mapped[str]  # failure, retry, slow, deadline, recovery
    dag_id: Mapped[str]
    run_id: Mapped[int] = mapped_column(BigInteger)
    task_id: Mapped[str | None]
    detail: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="waiting")  # waiting, sending, sent, failed
    tries: Mapped[int] = mapped_column(server_default=text("0"))
    due_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[dt.datetime | None]
    error: Mapped[str | None]  # why it was not sent
    __table_args__ = (Index("ix_notification_due", "due_at", postgresql_where=text("state IN ('waiting', 'sending')")),)


class AssetEvent(Base):
    """An asset was updated: by a task, or, as somebody said, from outside."""

    __tablename__ = "asset_event"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(server_default=func.clock_timestamp())
    asset: Mapped[str]
    dag_id: Mapped[str | None]
    run_id: Mapped[int | None] = mapped_column(BigInteger)
    task_id: Mapped[str | None]
    who: Mapped[str | None]  # of one from outside
    extra: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    __table_args__ = (Index("ix_asset_event_asset", "asset", "at"),)


class AssetPending(Base):
    """An event that a DAG's next run will use. seen: it was looked at, and did not suffice."""

    __tablename__ = "asset_pending"
    dag_id: Mapped[str] = mapped_column(primary_key=True)
    event_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    asset: Mapped[str]
    seen: Mapped[bool] = mapped_column(server_default=text("false"))
    __table_args__ = (Index("ix_asset_pending_new", "dag_id", postgresql_where=text("NOT seen")),)


class Pool(Base):
    """Slots shared by tasks that name the pool, whatever their DAG."""

    __tablename__ = "pool"
    name: Mapped[str] = mapped_column(primary_key=True)
    slots: Mapped[int]
    description: Mapped[str] = mapped_column(server_default="")
    source: Mapped[str | None]  # the file it was applied from


class StoredConnection(Base):
    """How to reach a system, for tasks that ask by name; secrets in it are references or encrypted."""

    __tablename__ = "connection"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JSONB)
    source: Mapped[str | None]  # the file it was applied from
    updated_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    updated_by: Mapped[str]


class Variable(Base):
    """A value for tasks that ask by name, the same in all pipelines of the environment."""

    __tablename__ = "variable"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JSONB)
    source: Mapped[str | None]  # the file it was applied from
    updated_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    updated_by: Mapped[str]


class Event(Base):
    """Every transition, in order: the live view, the audit trail and the tests read this one table."""

    __tablename__ = "event"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(server_default=func.clock_timestamp())
    kind: Mapped[str]  # task, run, node, rollout, pool
    subject: Mapped[str]  # task instance id, run id, node id, rollout id, pool
    state: Mapped[str]  # the state entered
    run_id: Mapped[int | None] = mapped_column(BigInteger)
    attempt: Mapped[int | None]
    node_id: Mapped[str | None]
    detail: Mapped[str | None]
    __table_args__ = (
        Index("ix_event_run", "run_id", "subject", postgresql_where=text("run_id IS NOT NULL")),
        # Events come in the order of their times, so that a span of them is found by almost nothing.
        Index("ix_event_at", "at", postgresql_using="brin"),
    )


class Node(Base):
    """A machine of the fleet. Its row changes only with its state: a claim locks it against a cordon."""

    __tablename__ = "node"
    node_id: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]  # worker, scheduler, web
    pool: Mapped[str]
    state: Mapped[str]
    reason: Mapped[str | None]  # why it drains
    requested_by: Mapped[str | None]
    deadline_at: Mapped[dt.datetime | None]  # end of the drain
    release: Mapped[str]
    slots: Mapped[int]
    queues: Mapped[list[str]]
    boot_id: Mapped[str]  # changes with every start of the node's service
    instance_id: Mapped[str]
    address: Mapped[str]
    registered_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    changed_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    after_drain: Mapped[str] = mapped_column(server_default="")  # what the agent does with the machine then
    __table_args__ = (
        _one_of("state", NODE_STATES),
        _one_of("after_drain", AFTER_DRAIN),
        Index("ix_node_live", "role", "pool", postgresql_where=text("state <> 'gone'")),
    )


class NodeOrder(Base):
    """Which release a running machine shall change to in place. It stays: it is also what it starts after a reboot."""

    __tablename__ = "node_order"
    machine: Mapped[str] = mapped_column(primary_key=True)  # id of its first node
    release: Mapped[str]
    reason: Mapped[str]  # why the nodes of other releases then drain
    requested_by: Mapped[str]
    drain_seconds: Mapped[float]
    error: Mapped[str | None]  # why it cannot be carried out, as the agent has found last
    ordered_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())


class NodeHeartbeat(Base):
    """When a node was last heard; apart from `node`, so that a heartbeat never waits for a claim."""

    __tablename__ = "node_heartbeat"
    node_id: Mapped[str] = mapped_column(ForeignKey("node.node_id", ondelete="CASCADE"), primary_key=True)
    at: Mapped[dt.datetime]


class Release(Base):
    """An archive of everything a node runs."""

    __tablename__ = "release"
    id: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str]
    git_commit: Mapped[str]
    url: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    created_by: Mapped[str]


class Rollout(Base):
    """A wish to run one release on a pool, its plan, and how far it is."""

    __tablename__ = "rollout"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    role: Mapped[str]
    pool: Mapped[str]
    release: Mapped[str]
    strategy: Mapped[str]
    wish: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(server_default="running")
    error: Mapped[str | None]
    driver: Mapped[str | None]  # who drives it now
    driver_at: Mapped[dt.datetime | None]
    created_by: Mapped[str]
    created_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[dt.datetime | None]
    __table_args__ = (
        _one_of("state", ROLLOUT_STATES),
        # One roll per pool at a time; the database refuses the second.
        Index("uq_rollout_one_per_pool", "role", "pool", unique=True, postgresql_where=text("state = 'running'")),
    )


class RolloutStep(Base):
    """One step of a rollout's plan: recorded before and after it is done."""

    __tablename__ = "rollout_step"
    rollout_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    action: Mapped[str]
    args: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(server_default="pending")
    detail: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    started_at: Mapped[dt.datetime | None]
    ended_at: Mapped[dt.datetime | None]
    __table_args__ = (_one_of("state", STEP_STATES),)


class PoolScaling(Base):
    """What the autoscaler last thought of a pool: one row each, for people, metrics and the next leader."""

    __tablename__ = "pool_scaling"
    pool: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    minimum: Mapped[int]
    maximum: Mapped[int]
    size: Mapped[int]  # nodes that serve or will
    needed: Mapped[int]  # by the load alone, within the bounds
    target: Mapped[int]  # the same, with what was needed within the cool-down
    reason: Mapped[str]
    history: Mapped[dict[str, Any]]


class Deploy(Base):
    """One line of the deploy history: pipeline code, releases and infrastructure alike."""

    __tablename__ = "deploy"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    kind: Mapped[str]  # code, release, infra
    target: Mapped[str]  # bundle name, pool, stack
    before: Mapped[str | None]
    after: Mapped[str | None]
    who: Mapped[str]
    detail: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    __table_args__ = (Index("ix_deploy_at", "at"),)
