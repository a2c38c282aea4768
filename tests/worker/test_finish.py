from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from sqlalchemy import Engine

from runner.state.doorbell import Doorbell, celery_app
from runner.state.transitions import Claim, Outcome
from runner.worker.attempts import Attempt, Attempts
from runner.worker.finish import Finisher
from tests.state.conftest import World, task


def finisher(engine: Engine, broker_url: str, tmp_path: Path) -> Finisher:
    return Finisher(
        engine,
        Doorbell(celery_app(broker_url)),
        tmp_path / "spool",
        Attempts(),
        node_id="n1",
        queues=lambda: ["default"],
        lease_seconds=60,
        taking=lambda: True,
    )


def deliver(f: Finisher, *outcomes: tuple[Claim, Outcome]) -> list[Attempt]:
    """Let as many slots wait for their outcomes to be committed; returns what they go on with."""
    following: list[Attempt | None] = []
    slots = [
        threading.Thread(target=lambda c=claim, o=outcome: following.append(f.finish(Attempt(c, 0.0), o)))
        for claim, outcome in outcomes
    ]
    for slot in slots:
        slot.start()
    f.start()
    for slot in slots:
        slot.join(30)
        assert not slot.is_alive()
    f.stop()
    return [a for a in following if a is not None]


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
        (a, Outcome(a.task_instance, a.token, "success", value="1")),
        (b, Outcome(b.task_instance, b.token, "success", value='"\\u0000"')),
        (c, Outcome(c.task_instance, c.token, "success", value="2")),
    )
    # Then the others are stored, and that one says why it was not
    assert world.states(run) == {"a": "success", "b": "failed", "c": "success"}
    assert "cannot be stored" in world.one("SELECT error FROM task_instance WHERE task_id = 'b'")


def test_a_slot_goes_on_with_the_next_task(engine: Engine, broker_url: str, tmp_path: Path) -> None:
    # Given a task that runs and one after it
    world = World(engine)
    world.dag(task("a"), task("b", "a"))
    world.node(slots=1)
    world.run()
    (a,) = world.take()
    # When the first is finished, then its slot has the second at once, with a lease
    f = finisher(engine, broker_url, tmp_path)
    (following,) = deliver(f, (a, Outcome(a.task_instance, a.token, "success")))
    assert following.claim.task_id == "b"
    assert following.lease_until > time.monotonic() + 30


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
