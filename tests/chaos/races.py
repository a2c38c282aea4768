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


@scenario("duplicates", 16)
def duplicates(f: Fleet) -> None:
    """Every message rings three more times: before its task runs, while it runs and after."""
    f.start(workers=2, CHAOS_WATCH=str(f.directory / "workers.refused"))
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
    if rung < tasks or not f.refused():
        f.problems.append(f"{rung} duplicates for {tasks} tasks, {f.refused()} refused: the scenario proved too little")


def race(f: Fleet, rounds: int) -> int:
    """Claims of four threads on one node, and its cordon, all at once; returns how many claims there were.

    After the cordon's commit not one more may appear.
    """
    claims = 0
    for number in range(rounds):
        node = f"race-{number}"
        with f.engine.begin() as c:
            info = nodes.NodeInfo(node, "worker", "default", "dev", "boot", slots=20, queues=[node])
            nodes.register(c, info)
            transitions.create_run(c, "wide", dt.datetime.now(dt.UTC), queue=node)
            messages = list(transitions.dispatch(c))
        claims += len(messages)
        barrier = threading.Barrier(CLAIMERS + 1)

        def claim(own: list[Message], b: threading.Barrier = barrier, n: str = node) -> None:
            b.wait()
            for m in own:
                with f.engine.begin() as c:
                    transitions.claim(c, m.task_instance, m.attempt, node_id=n, lease_seconds=60)

        threads = [threading.Thread(target=claim, args=(messages[i::CLAIMERS],)) for i in range(CLAIMERS)]
        for t in threads:
            t.start()
        barrier.wait()
        time.sleep(f.rng.uniform(0.0, 0.015))
        f.cordon(node)
        at_cordon = f.running(node)
        for t in threads:
            t.join()
        added = f.running(node) - at_cordon
        f.all("DELETE FROM dag_run RETURNING id")
        if added:
            f.problems.append(f"round {number}: {added} claims were committed after the cordon")
            break
    return claims


@scenario("claim-versus-cordon", 9, takes=8)
def claim_versus_cordon(f: Fleet) -> None:
    """Claims race a cordon of their node, in the database alone: never do both win. 10⁵ claims at scale 50."""
    rounds = len(f.rounds(100))
    claims = race(f, rounds)
    if claims < 20 * rounds and not f.problems:
        f.problems.append(f"{claims} claims in {rounds} rounds: the scenario proved too little")
