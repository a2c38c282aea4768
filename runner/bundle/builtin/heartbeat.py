"""The heartbeat: one task that proves a node can take work, run it and hand back a result."""

import datetime as dt
import socket
from typing import Any

from runner.authoring import Context, dag, task


@task(timeout=dt.timedelta(seconds=60))
def beat(context: Context) -> dict[str, Any]:
    return {
        "node": context.node or socket.gethostname(),
        "release": context.release,
        "time": dt.datetime.now(dt.UTC).isoformat(),
    }


@dag(
    description="Proof that a node can take work. Started by rollouts and by operators, on the queue they ask for.",
    run_timeout=dt.timedelta(minutes=10),  # on a node's own queue nobody else would ever run it
)
def sluice_heartbeat() -> None:
    beat()
