"""The heartbeat: every five minutes a task for each dependency proves that a node reaches it, in under a second.

Alarm on its absence: what is broken cannot tell you so.
"""

import datetime as dt
import time
import uuid

import httpx
import sqlalchemy as sa

from runner.authoring import Context, connection, dag, task, variable

probe = task(retries=1, retry_delay=dt.timedelta(seconds=5), timeout=dt.timedelta(seconds=30))


@probe
def database() -> str:
    """The connection `database` answers a query."""
    with sa.create_engine(connection("database").url(), poolclass=sa.NullPool).connect() as c:
        return str(c.execute(sa.text("SELECT current_database()")).scalar())


@probe
def storage(context: Context) -> int:
    """What is written to the storage can be read and removed."""
    key, sent = f"heartbeat/{uuid.uuid4()}", uuid.uuid4().bytes
    context.storage.put(key, sent)
    if context.storage.get(key) != sent:
        raise RuntimeError(f"{key} is not what was written there")
    context.storage.delete(key)
    return len(sent)


@probe
def http() -> int:
    """The URL in the variable `heartbeat_url` answers, below 400."""
    return httpx.get(variable("heartbeat_url"), timeout=5).raise_for_status().status_code


@task
def beat(database: str, storage: int, http: int, context: Context) -> float:
    """All is well; returns when (seconds since 1970), for what watches."""
    print(f"{context.node}: {database}, {storage} bytes stored, HTTP {http}")
    return time.time()


@dag(schedule=dt.timedelta(minutes=5), max_active_runs=1, tags=["example"])
def heartbeat() -> None:
    """A probe for every dependency, side by side."""
    beat(database(), storage(), http())
