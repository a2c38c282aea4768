"""Stands in for a node's service: registers, heartbeats, obeys a drain. What it does wrong is asked for by files.

In SLUICE_HOME: `refuse` → exits at once with status 3; `deaf` → ignores TERM; `quiet` → does not say drained.
"""

import os
import signal
import sys
import time
import uuid
from pathlib import Path

home = Path(os.environ["SLUICE_HOME"])
node_id, role = os.environ["SLUICE_NODE_ID"], sys.argv[1]


def stop(*_: object) -> None:
    if not (home / "deaf").exists():
        sys.exit(0)


with (home / "starts").open("a") as starts:
    starts.write(f"{os.getpid()}\n")
if (home / "refuse").exists():
    sys.exit(3)
from runner.state import db, nodes  # noqa: E402  a service that refuses does so quickly

signal.signal(signal.SIGTERM, stop)
engine = db.connect(os.environ["SLUICE_DATABASE_URL"], pool_size=1)
info = nodes.NodeInfo(node_id, role, "default", "r1", uuid.uuid4().hex, slots=1, queues=("default",))
with engine.begin() as c:
    nodes.register(c, info)
while True:
    with engine.begin() as c:
        orders = nodes.heartbeat(c, node_id)
        if role == "worker" and orders and orders.state == "draining" and not (home / "quiet").exists():
            nodes.drained(c, node_id)
    time.sleep(0.05)
