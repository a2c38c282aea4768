"""Connecting to the metadata database, and being woken by it."""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, create_engine, text

CHANNEL = "sluice"  # NOTIFY channel: there is work a scheduler should look at


# Every statement of the hot path finds its rows through an index. A plan made once is right for good, and making it
# takes longer than using it; what the planner believes of a table that has just begun to grow is wrong.
# And a process that has stopped or cannot be reached in the middle of a transaction must not keep its locks: nobody
# could hand on what it holds.
HOT = (
    "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c jit=off "
    "-c idle_in_transaction_session_timeout=10000 -c tcp_user_timeout=10000 "
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"
)


def connect(
    url: str, *, pool_size: int = 5, application_name: str = "sluice", hot: bool = False, **options: Any
) -> Engine:
    """An engine for a postgresql:// URL; `hot` for processes that say the same few statements all day.

    A dead connection is noticed before use, and a database that answers nothing for 10 s counts as away:
    a failover must not hang a heartbeat.
    """
    driver_url = url.replace("postgres://", "postgresql://", 1).replace("postgresql://", "postgresql+psycopg://", 1)
    return create_engine(
        driver_url,
        pool_size=pool_size,
        max_overflow=5,
        pool_pre_ping=True,
        pool_recycle=1800,
        pool_use_lifo=True,  # the connection that was used last knows the statements
        connect_args={
            "application_name": application_name,
            "connect_timeout": 5,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            **({"options": HOT} if hot else {}),
        },
        **options,
    )


def listen(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection that hears the channel; iterate its `notifies(timeout=…)`."""
    connection = psycopg.connect(url, autocommit=True, application_name="sluice-listen", connect_timeout=5)
    connection.execute(f"LISTEN {CHANNEL}")
    return connection


def empty(connection: Connection) -> bool:
    """Whether no schema of ours has ever been made there."""
    return connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None
