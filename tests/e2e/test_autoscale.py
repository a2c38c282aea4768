"""A burst on a pool that may be empty: the whole local cloud, its stacks, schedulers, agents and process nodes."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from runner import examples
from runner.deployctl.local_cloud import LocalCloud
from runner.deployctl.pipelines import Pipelines
from runner.localcloud.judge import judge
from runner.rollout.autoscale.pool import of_group
from runner.rollout.cloud import Cloud
from runner.state import db, queries, transitions
from runner.storage import Storage

pytestmark = pytest.mark.e2e

# The whole burst is 500 tasks of 10 s; without it as many tenths.
TASKS = int(os.environ.get("AUTOSCALE_TASKS", "120"))
SECONDS = float(os.environ.get("AUTOSCALE_SECONDS", "2"))
COOLDOWN = float(os.environ.get("AUTOSCALE_COOLDOWN", "20"))
MOST = 8
GROUP = "sluice-local-worker-burst"
POOLS = {
    "burst": {
        "workers": 0,
        "max_workers": MOST,
        "scale_to_zero": True,
        "scaling": "sluice",
        "slots": 8,
        "queues": ["default"],
        "cooldown_seconds": COOLDOWN,
        "drain_seconds": 120,
    }
}
PIPELINE = """
import time
from ledger import recorded
from runner.authoring import dag, task

def make(number):
    @task(task_id=f"pause_{number}")
    @recorded
    def pause() -> None:
        time.sleep(SECONDS)
    return pause

@dag()
def burst() -> None:
    for number in range(TASKS):
        make(number)()

burst()
"""


@pytest.fixture
def cloud() -> Iterator[LocalCloud]:
    before = os.environ.copy()
    home = Path(tempfile.mkdtemp(prefix="sluice-e2e-"))
    found = LocalCloud(home / "cloud", on_step=lambda step: print(step) if step.done or step.failed else None)
    os.environ["SLUICE_LOCAL_DIR"] = str(found.directory)
    try:
        yield found
    finally:
        found.down()
        # What a cloud puts into this process's environment is taken out again.
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def engine(cloud: LocalCloud) -> Iterator[Engine]:
    """The control plane and an empty pool, up and serving."""
    cloud.start_engines()
    cloud.migrate()
    cloud.start_aws()
    cloud.start_machines()
    cloud.bootstrap()
    built = cloud.first_release()
    cloud.apply("network")
    data = cloud.apply_in_background("data")  # its database takes its time, and nothing here needs it
    try:
        cloud.publish(built, wait_seconds=300)
        cloud.apply("control")
        cloud.apply("workers", pools=POOLS)
        cloud.wait_for_nodes(seconds=300)
        found = db.connect(cloud.state.database_url)
        yield found
        found.dispose()
    finally:
        data.wait()


def push(cloud: LocalCloud, engine: Engine, folder: Path) -> None:
    folder.mkdir()
    shutil.copy(Path(examples.__file__).parent / "temperatures" / "ledger.py", folder)
    (folder / "burst.py").write_text(PIPELINE.replace("SECONDS", repr(SECONDS)).replace("TASKS", repr(TASKS)))
    Pipelines(engine, Storage.open(cloud.state.artifacts_url)).push(folder, who="test")


def wait(check: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
    return found


@pytest.mark.timeout(1800)
def test_a_burst_on_an_empty_pool(cloud: LocalCloud, engine: Engine, tmp_path: Path) -> None:
    # Given a pool of 0 to 8 nodes that has none
    push(cloud, engine, tmp_path / "burst")
    aws = Cloud("us-east-1")
    group = aws.group(GROUP)
    pool = of_group(group, "sluice-local-worker-")
    assert pool is not None and group.desired == 0
    assert (pool.limits.minimum, pool.limits.maximum, pool.limits.slots) == (0, MOST, 8)

    def one(sql: str, **values: Any) -> Any:
        with engine.connect() as c:
            return c.execute(text(sql), values).scalar()

    # When the burst comes
    with engine.begin() as c:
        run = transitions.create_run(c, "burst", dt.datetime.now(dt.UTC))
    assert run is not None
    wait(lambda: one("SELECT count(*) FROM event WHERE kind = 'pool'"), 60, "the first node is asked for")
    ready_to_request = one(
        "SELECT extract(epoch FROM (SELECT min(at) FROM event WHERE kind = 'pool') - min(ready_at)) "
        "FROM task_instance WHERE run_id = :run",
        run=run,
    )
    most = 0

    def over() -> bool:
        nonlocal most
        most = max(most, aws.group(GROUP).desired)
        return str(one("SELECT state FROM dag_run WHERE id = :run", run=run)) != "running"

    began = time.monotonic()
    wait(over, 1200, "the run ends")
    took = time.monotonic() - began
    assert one("SELECT state FROM dag_run WHERE id = :run", run=run) == "success"
    # Then the pool is empty again after the cool-down
    wait(lambda: aws.group(GROUP).desired == 0, COOLDOWN + 180, "the pool is empty again")
    to_zero = one(
        "SELECT extract(epoch FROM clock_timestamp() - max(ended_at)) FROM task_instance WHERE run_id = :run", run=run
    )

    def workers() -> list[str]:
        with engine.connect() as c:
            return [n.node_id for n in queries.fleet(c, role="worker")]

    wait(lambda: not workers(), 180, "the last node is gone")
    # And no task was interrupted, none lost, none run twice
    interrupted = one("SELECT coalesce(sum(interruptions), 0) FROM task_instance WHERE run_id = :run", run=run)
    lines = (Path(cloud.state.ledger) / "ledger.jsonl").read_text().splitlines()
    verdict = judge(lines, [(run, f"pause_{i}") for i in range(TASKS)])
    with engine.connect() as c:
        said = list(c.execute(text("SELECT detail FROM event WHERE kind = 'pool' ORDER BY id")).scalars())
    report = {
        "tasks": TASKS,
        "of seconds": SECONDS,
        "first node requested after seconds": round(float(ready_to_request), 2),
        "nodes at most": most,
        "run took seconds": round(took, 1),
        "cool-down": COOLDOWN,
        "empty after the last task, seconds": round(float(to_zero), 1),
        "interrupted": int(interrupted),
        "ledger": verdict.summary(),
        "load": round(os.getloadavg()[0], 1),
    }
    print("\n" + json.dumps(report, indent=1) + "\n" + "\n".join(said))
    assert verdict.ok and not verdict.killed and verdict.tasks == TASKS
    assert interrupted == 0 and most == MOST
    assert to_zero >= COOLDOWN
    assert ready_to_request < 3 or os.getloadavg()[0] > 2 * (
        os.cpu_count() or 1
    )  # a machine that has nothing else to do
