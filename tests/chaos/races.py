"""Two things that want the same row at the same moment."""

from __future__ import annotations

import datetime as dt
import threading
import time

from runner.state import nodes, transitions
from runner.state.transitions import Message

from .fleet import Fleet
from .registry import scenario

CLAIMERS = 4
RUNNING = "SELECT count(*) FROM task_instance WHERE state = 'running' AND node_id = :n"


@scenario("duplicates", seconds=60)
def duplicates(f: Fleet) -> None:
    """Every message rings three more times: before its task runs, while it runs and after."""
    f.start(workers=2)
    stop = threading.Event()
    rung = 0

    def ring_again() -> None:
        nonlocal rung
        states = ["queued", "running", "success"]
        while not stop.wait(0.05):
            rows = f.all(
                "SELECT id, attempt, queue FROM task_instance WHERE state = ANY (:states) "
                "AND (state <> 'success' OR ended_at > now() - interval '0.3 second')",
                states=states,
            )
            rung += f.doorbell.ring([Message(*row) for row in rows])

    thread = threading.Thread(target=ring_again)
    thread.start()
    try:
        for _ in f.rounds(3):
            f.run("diamonds", 4, seconds=[0.02, 0.2])
            f.pause(0.5, 1.0)
        f.wait(f.over, "all runs end")
    finally:
        stop.set()
        thread.join()
    tasks = f.one("SELECT count(*) FROM task_instance")
    if rung < 3 * tasks:
        f.problems.append(f"{rung} duplicates for {tasks} tasks: the scenario proved too little")


def race(f: Fleet, rounds: int) -> int:
    """Claims of four threads on one node, and its cordon, all at once; returns how many claims there were.

    After the cordon's commit not one more may appear.
    """
    f.start(workers=0, schedulers=0)
    claims = 0
    for number in range(rounds):
        node = f"race-{number}"
        with f.engine.begin() as c:
            info = nodes.NodeInfo(node, "worker", "default", "dev", "boot", slots=CLAIMERS // 2, queues=[node])
            nodes.register(c, info)
            transitions.create_run(c, "wide", dt.datetime.now(dt.UTC), queue=node)
            messages = transitions.dispatch(c)
        claims += len(messages)
        barrier = threading.Barrier(CLAIMERS + 1)

        def claim(m: Message, b: threading.Barrier = barrier, n: str = node) -> None:
            b.wait()
            with f.engine.begin() as c:
                transitions.claim(c, m.task_instance, m.attempt, node_id=n, lease_seconds=60)

        threads = [threading.Thread(target=claim, args=(m,)) for m in messages[:CLAIMERS]]
        for t in threads:
            t.start()
        barrier.wait()
        time.sleep(f.rng.uniform(0.0, 0.003))
        f.cordon(node)
        at_cordon = f.one(RUNNING, n=node)
        for t in threads:
            t.join()
        added = f.one(RUNNING, n=node) - at_cordon
        f.all("DELETE FROM dag_run RETURNING id")
        if added:
            f.problems.append(f"round {number}: {added} claims were committed after the cordon")
            break
    return claims


@scenario("claim-versus-cordon", seconds=60)
def claim_versus_cordon(f: Fleet) -> None:
    """Claims race a cordon of their node, in the database alone: never do both win."""
    race(f, len(f.rounds(400)))
