"""initial schema"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "pre_0001"
down_revision = None
branch_labels = ("pre",)
depends_on = None


def upgrade() -> None:
    op.create_table(
        "asset_event",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("asset", sa.Text(), nullable=False),
        sa.Column("dag_id", sa.Text(), nullable=True),
        sa.Column("run_id", sa.BigInteger(), nullable=True),
        sa.Column("task_id", sa.Text(), nullable=True),
        sa.Column("who", sa.Text(), nullable=True),
        sa.Column("extra", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_asset_event")),
    )
    op.create_index("ix_asset_event_asset", "asset_event", ["asset", "at"], unique=False)
    op.create_table(
        "asset_pending",
        sa.Column("dag_id", sa.Text(), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("asset", sa.Text(), nullable=False),
        sa.Column("seen", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("dag_id", "event_id", name=op.f("pk_asset_pending")),
    )
    op.create_index(
        "ix_asset_pending_new", "asset_pending", ["dag_id"], unique=False, postgresql_where=sa.text("NOT seen")
    )
    op.create_table(
        "backfill",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("dag_id", sa.Text(), nullable=False),
        sa.Column("which", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="running", nullable=False),
        sa.Column("max_active", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("tasks", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('running', 'paused', 'cancelled', 'done')", name=op.f("ck_backfill_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backfill")),
    )
    op.create_index(
        "ix_backfill_running", "backfill", ["id"], unique=False, postgresql_where=sa.text("state = 'running'")
    )
    op.create_table(
        "bundle",
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_bundle")),
    )
    op.create_table(
        "connection",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", postgresql.JSONB(), nullable=False),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_connection")),
    )
    op.create_table(
        "deploy",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("detail", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deploy")),
    )
    op.create_index("ix_deploy_at", "deploy", ["at"], unique=False)
    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("node_id", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    op.create_index(
        "ix_event_run", "event", ["run_id", "subject"], unique=False, postgresql_where=sa.text("run_id IS NOT NULL")
    )
    op.create_index("ix_event_at", "event", ["at"], unique=False, postgresql_using="brin")
    op.create_table(
        "node",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("requested_by", sa.Text(), nullable=True),
        sa.Column("deadline_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("release", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("queues", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column(
            "registered_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("changed_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("after_drain", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("after_drain IN ('', 'terminate', 'replace')", name=op.f("ck_node_after_drain")),
        sa.CheckConstraint("state IN ('booting', 'ready', 'draining', 'drained', 'gone')", name=op.f("ck_node_state")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_node")),
    )
    op.create_index("ix_node_live", "node", ["role", "pool"], unique=False, postgresql_where=sa.text("state <> 'gone'"))
    op.create_table(
        "node_order",
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("release", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("drain_seconds", sa.Float(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("ordered_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("machine", name=op.f("pk_node_order")),
    )
    op.create_table(
        "notification",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("receiver", sa.Text(), nullable=False),
        sa.Column("occasion", sa.Text(), nullable=False),
        sa.Column("dag_id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default="waiting", nullable=False),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notification")),
        sa.UniqueConstraint("key", name=op.f("uq_notification_key")),
    )
    op.create_index(
        "ix_notification_due",
        "notification",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('waiting', 'sending')"),
    )
    op.create_table(
        "pool",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("source", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_pool")),
    )
    op.create_table(
        "release",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("git_commit", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release")),
    )
    op.create_table(
        "pool_scaling",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("minimum", sa.Integer(), nullable=False),
        sa.Column("maximum", sa.Integer(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("needed", sa.Integer(), nullable=False),
        sa.Column("target", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("history", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("pool", name=op.f("pk_pool_scaling")),
    )
    op.create_table(
        "rollout",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("release", sa.Text(), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("wish", postgresql.JSONB(), nullable=False),
        sa.Column("state", sa.Text(), server_default="running", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("driver", sa.Text(), nullable=True),
        sa.Column("driver_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('running', 'succeeded', 'failed', 'aborted')", name=op.f("ck_rollout_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout")),
    )
    op.create_index(
        "uq_rollout_one_per_pool",
        "rollout",
        ["role", "pool"],
        unique=True,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "variable",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", postgresql.JSONB(), nullable=False),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_variable")),
    )
    op.create_table(
        "backfill_run",
        sa.Column("backfill_id", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("logical_date", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("interval_start", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("interval_end", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("again", sa.Boolean(), nullable=False),
        sa.Column("started", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["backfill_id"], ["backfill.id"], name=op.f("fk_backfill_run_backfill_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("backfill_id", "seq", name=op.f("pk_backfill_run")),
    )
    op.create_index(
        "ix_backfill_run_run", "backfill_run", ["run_id"], unique=False, postgresql_where=sa.text("run_id IS NOT NULL")
    )
    op.create_index(
        "ix_backfill_run_waiting",
        "backfill_run",
        ["backfill_id", "seq"],
        unique=False,
        postgresql_where=sa.text("NOT started"),
    )
    op.create_table(
        "dag",
        sa.Column("dag_id", sa.Text(), nullable=False),
        sa.Column("bundle", sa.Text(), nullable=False),
        sa.Column("bundle_version", sa.Text(), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("schedule", sa.Text(), nullable=True),
        sa.Column("assets", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("next_run_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("max_active_runs", sa.Integer(), nullable=True),
        sa.Column("max_active_tasks", sa.Integer(), nullable=True),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["bundle_version"], ["bundle.version"], name=op.f("fk_dag_bundle_version")),
        sa.PrimaryKeyConstraint("dag_id", name=op.f("pk_dag")),
    )
    op.create_index("ix_dag_assets", "dag", ["assets"], unique=False, postgresql_using="gin")
    op.create_index(
        "ix_dag_due", "dag", ["next_run_at"], unique=False, postgresql_where=sa.text("active AND NOT paused")
    )
    op.create_table(
        "dag_run",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("dag_id", sa.Text(), nullable=False),
        sa.Column("bundle_version", sa.Text(), nullable=False),
        sa.Column("logical_date", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("interval_start", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("interval_end", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("run_type", sa.Text(), nullable=False),
        sa.Column("params", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("state", sa.Text(), server_default="running", nullable=False),
        sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("triggers", postgresql.JSONB(), nullable=True),
        sa.Column("queue", sa.Text(), nullable=True),
        sa.Column("task_filter", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("unfinished", sa.Integer(), nullable=False),
        sa.Column("failed_leaves", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("deadline_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('queued', 'running', 'success', 'failed')", name=op.f("ck_dag_run_state")),
        sa.ForeignKeyConstraint(["bundle_version"], ["bundle.version"], name=op.f("fk_dag_run_bundle_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dag_run")),
        sa.UniqueConstraint("dag_id", "logical_date", name=op.f("uq_dag_run_dag_id")),
    )
    op.create_index(
        "ix_dag_run_active",
        "dag_run",
        ["dag_id", "state", "id"],
        unique=False,
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )
    op.create_index(
        "ix_dag_run_deadline", "dag_run", ["deadline_at"], unique=False, postgresql_where=sa.text("state = 'running'")
    )
    op.create_index("ix_dag_run_failed", "dag_run", ["id"], unique=False, postgresql_where=sa.text("state = 'failed'"))
    op.create_index("ix_dag_run_recent", "dag_run", ["created_at"], unique=False)
    op.create_index(
        "ix_dag_run_running", "dag_run", ["id"], unique=False, postgresql_where=sa.text("state = 'running'")
    )
    op.create_table(
        "dag_version",
        sa.Column("dag_id", sa.Text(), nullable=False),
        sa.Column("bundle_version", sa.Text(), nullable=False),
        sa.Column("spec", postgresql.JSONB(), nullable=False),
        sa.Column("run_timeout_seconds", sa.Double(), nullable=True),
        sa.Column("notify", postgresql.JSONB(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("callbacks", sa.ARRAY(sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(["bundle_version"], ["bundle.version"], name=op.f("fk_dag_version_bundle_version")),
        sa.PrimaryKeyConstraint("dag_id", "bundle_version", name=op.f("pk_dag_version")),
    )
    op.create_table(
        "node_heartbeat",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["node_id"], ["node.node_id"], name=op.f("fk_node_heartbeat_node_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_node_heartbeat")),
    )
    op.create_table(
        "rollout_step",
        sa.Column("rollout_id", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("args", postgresql.JSONB(), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("detail", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'running', 'done', 'failed')", name=op.f("ck_rollout_step_state")),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_rollout_step_rollout_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "seq", name=op.f("pk_rollout_step")),
    )
    op.create_table(
        "dag_edge",
        sa.Column("dag_id", sa.Text(), nullable=False),
        sa.Column("bundle_version", sa.Text(), nullable=False),
        sa.Column("upstream", sa.Text(), nullable=False),
        sa.Column("downstream", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dag_id", "bundle_version"],
            ["dag_version.dag_id", "dag_version.bundle_version"],
            name=op.f("fk_dag_edge_dag_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dag_id", "bundle_version", "upstream", "downstream", name=op.f("pk_dag_edge")),
    )
    op.create_table(
        "dag_task",
        sa.Column("dag_id", sa.Text(), nullable=False),
        sa.Column("bundle_version", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("max_tries", sa.Integer(), nullable=False),
        sa.Column("retry_delay_seconds", sa.Double(), nullable=False),
        sa.Column("retry_backoff", sa.Double(), nullable=False),
        sa.Column("retry_max_delay_seconds", sa.Double(), nullable=True),
        sa.Column("retry_jitter", sa.Double(), nullable=False),
        sa.Column("timeout_seconds", sa.Double(), nullable=True),
        sa.Column("trigger_rule", sa.Text(), nullable=False),
        sa.Column("inputs", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("map_over", postgresql.JSONB(), nullable=False),
        sa.Column("sensor", postgresql.JSONB(), nullable=True),
        sa.Column("pool", sa.Text(), nullable=True),
        sa.Column("pool_slots", sa.Integer(), nullable=False),
        sa.Column("max_active", sa.Integer(), nullable=True),
        sa.Column("depends_on_past", sa.Boolean(), nullable=False),
        sa.Column("setup", sa.Boolean(), nullable=False),
        sa.Column("on_lost", sa.Text(), nullable=False),
        sa.Column("execution", postgresql.JSONB(), nullable=False),
        sa.Column("outlets", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("notify", postgresql.JSONB(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("upstream_total", sa.Integer(), nullable=False),
        sa.Column("leaf", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dag_id", "bundle_version"],
            ["dag_version.dag_id", "dag_version.bundle_version"],
            name=op.f("fk_dag_task_dag_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dag_id", "bundle_version", "task_id", name=op.f("pk_dag_task")),
    )
    op.create_table(
        "task_instance",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("dag_id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("map_index", sa.Integer(), server_default=sa.text("-1"), nullable=False),
        sa.Column("map_lengths", sa.ARRAY(sa.Integer()), nullable=True),
        sa.Column("bundle_version", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), server_default="task", nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("trigger_rule", sa.Text(), nullable=False),
        sa.Column("leaf", sa.Boolean(), nullable=False),
        sa.Column("setup", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("limited", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("admitted", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("past_blocked", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("upstream_total", sa.Integer(), nullable=False),
        sa.Column("waiting_on", sa.Integer(), nullable=False),
        sa.Column("upstream_failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("upstream_skipped", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("setups_ok", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("max_tries", sa.Integer(), nullable=False),
        sa.Column("interruptions", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("timeout_seconds", sa.Double(), nullable=True),
        sa.Column("available_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("ready_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("queued_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("waiting_since", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("lease_token", sa.UUID(), nullable=True),
        sa.Column("lease_expires_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("node_id", sa.Text(), nullable=True),
        sa.Column("ordered", sa.Text(), nullable=True),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("(state = 'running') = (lease_token IS NOT NULL)", name=op.f("ck_task_instance_lease")),
        sa.CheckConstraint(
            "kind IN ('task', 'sensor', 'mapped', 'item', 'callback')", name=op.f("ck_task_instance_kind")
        ),
        sa.CheckConstraint(
            "state IN ('waiting', 'ready', 'queued', 'running', 'deferred', 'up_for_retry', 'expanded', 'success', 'failed', 'skipped', 'upstream_failed')",  # noqa: E501
            name=op.f("ck_task_instance_state"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["dag_run.id"], name=op.f("fk_task_instance_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task_instance")),
        sa.UniqueConstraint("run_id", "task_id", "map_index", name=op.f("uq_task_instance_run_id")),
    )
    op.create_index(
        "ix_task_instance_counted",
        "task_instance",
        ["dag_id", "task_id"],
        unique=False,
        postgresql_where=sa.text("limited AND (state IN ('queued', 'running') OR (state = 'ready' AND admitted))"),
    )
    op.create_index(
        "ix_task_instance_deferred",
        "task_instance",
        ["id"],
        unique=False,
        postgresql_where=sa.text("state = 'deferred'"),
    )
    op.create_index(
        "ix_task_instance_due",
        "task_instance",
        ["queue", sa.literal_column("priority DESC"), "id"],
        unique=False,
        postgresql_where=sa.text("state IN ('ready', 'queued') AND admitted"),
    )
    op.create_index(
        "ix_task_instance_inflight",
        "task_instance",
        ["queue", "state"],
        unique=False,
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )
    op.create_index(
        "ix_task_instance_limited",
        "task_instance",
        ["dag_id", "task_id", sa.literal_column("priority DESC"), "id"],
        unique=False,
        postgresql_where=sa.text("state = 'ready' AND NOT admitted"),
    )
    op.create_index(
        "ix_task_instance_node",
        "task_instance",
        ["node_id"],
        unique=False,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "ix_task_instance_past",
        "task_instance",
        ["dag_id"],
        unique=False,
        postgresql_where=sa.text("state = 'waiting' AND past_blocked"),
    )
    op.create_index(
        "ix_task_instance_retry",
        "task_instance",
        ["available_at"],
        unique=False,
        postgresql_where=sa.text("state = 'up_for_retry'"),
    )
    op.create_table(
        "xcom",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("map_index", sa.Integer(), server_default=sa.text("-1"), nullable=False),
        sa.Column("value", postgresql.JSONB(), nullable=True),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("length", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["dag_run.id"], name=op.f("fk_xcom_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "task_id", "map_index", name=op.f("pk_xcom")),
    )
