from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from sqlalchemy import Engine

from runner.state.doorbell import Doorbell, celery_app
from runner.state.transitions import Outcome
from runner.worker.finish import Finisher
from tests.state.conftest import World, task


def finisher(engine: Engine, broker_url: str, tmp_path: Path) -> Finisher:
    return Finisher(engine, Doorbell(celery_app(broker_url)), tmp_path / "spool")


def deliver(f: Finisher, *outcomes: Outcome) -> None:
    done = [threading.Event() for _ in outcomes]
    for outcome, event in zip(outcomes, done, strict=True):
        f.finish(outcome, event.set)
    f.start()
    for event in done:
        assert event.wait(10)
    f.stop()


def test_an_outcome_that_cannot_be_stored_fails_alone(engine: Engine, broker_url: str, tmp_path: Path) -> None:
    # Given three outcomes, one of them with a value that PostgreSQL refuses
    world = World(engine)
    world.dag(task("a"), task("b", retries=3), task("c"))
    world.node()
    run = world.run()
    a, b, c = sorted(world.take(), key=lambda x: x.task_id)
    # When they are finished together
    deliver(
        finisher(engine, broker_url, tmp_path),
        Outcome(a.task_instance, a.token, "success", value="1"),
        Outcome(b.task_instance, b.token, "success", value='"\\u0000"'),
        Outcome(c.task_instance, c.token, "success", value="2"),
    )
    # Then the others are stored, and that one says why it was not
    assert world.states(run) == {"a": "success", "b": "failed", "c": "success"}
    assert "cannot be stored" in world.one("SELECT error FROM task_instance WHERE task_id = 'b'")


def test_outcomes_left_on_disk_are_committed_by_the_next_start(engine: Engine, broker_url: str, tmp_path: Path) -> None:
    world = World(engine)
    world.dag(task("a"))
    world.node()
    run = world.run()
    (claim,) = world.take()
    first = finisher(engine, broker_url, tmp_path)
    first._keep([Outcome(claim.task_instance, claim.token, "success", value='{"n": 1}')])
    # When the worker starts again
    assert finisher(engine, broker_url, tmp_path).recover() == 1
    # Then the work is not done twice, and nothing is left to recover
    assert world.states(run) == {"a": "success"}
    assert world.one("SELECT value ->> 'n' FROM xcom") == "1"
    assert finisher(engine, broker_url, tmp_path).recover() == 0


def test_a_thread_that_fails_ends_the_process() -> None:
    # A worker that can finish nothing must not go on renewing its leases
    code = (
        "import time\nfrom runner.worker.threads import essential\n"
        "essential('t', lambda: 1 / 0).start()\ntime.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stdout + done.stderr
