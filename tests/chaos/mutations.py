"""One safety taken away at a time: if nobody notices, the other scenarios prove nothing. How: sabotage/mutate.py."""

from __future__ import annotations

from runner.state.transitions import Message

from .fleet import Fleet
from .races import race
from .registry import scenario
from .sabotage import mutate
from .workers import stale


@scenario("mutation-token", 20, kills=True, mutation=("the attempt that was running",))
def mutation_token(f: Fleet) -> None:
    """Without the fencing token a stale outcome is believed, and ends the attempt that runs."""
    stale(f, CHAOS_MUTATION="token")


@scenario("mutation-claim", 20, mutation=("overlapped", "run again"))
def mutation_claim(f: Fleet) -> None:
    """Without the condition of the claim a duplicate message runs a task twice, also one that has ended."""
    f.start(workers=2, CHAOS_MUTATION="claim")
    f.run("wide", seconds=[0.5, 1.0])
    f.busy(4)
    while len(f.ledger_lines()) < 60 and not f.over():
        rows = f.all("SELECT id, attempt, queue FROM task_instance WHERE state IN ('running', 'success') LIMIT 3")
        f.doorbell.ring([Message(*row) for row in rows])
        f.pause(0.2, 0.2)
    f.deadline = min(f.deadline, f.now() + 5)


@scenario("mutation-gate-lock", 20, mutation=("claims were committed after the cordon",), takes=6)
def mutation_gate_lock(f: Fleet) -> None:
    """A gate that is looked at and not held: a claim and a cordon both win."""
    taken = mutate.mutate("gate-lock")
    try:
        race(f, 2000)
    finally:
        mutate.restore(taken)


@scenario("mutation-gate", 20, mutation=("claims by w1 after it was cordoned",), takes=10)
def mutation_gate(f: Fleet) -> None:
    """Without the gate a draining node claims."""
    f.start(workers=2, CHAOS_MUTATION="gate")
    f.warm()
    f.run("wide", 12, seconds=[0.02, 0.04])
    f.busy(2)
    f.cordon("w1")
    f.deadline = min(f.deadline, f.now() + 10)


@scenario("mutation-sweep", 20, kills=True, mutation=("is queued", "is running"), takes=20)
def mutation_sweep(f: Fleet) -> None:
    """Without the sweeps a lost message and a lost worker are never made good."""
    f.start(workers=2, CHAOS_MUTATION="resend,reap")
    f.run("one", 6, seconds=[4.0, 4.0])
    f.busy(4)
    for worker in f.workers():
        worker.kill()
    # Rung for workers that are dead by now, and the message lost: nobody else will be rung for it.
    f.run("one", 1)
    f.wait(lambda: f.one("SELECT count(*) FROM task_instance WHERE state = 'queued'"), "it is rung for")
    f.pause(0.5, 0.6)
    f.engines.flush()
    f.registered(f.spawn("worker", "w3", CHAOS_MUTATION="resend,reap"))
    f.deadline = min(f.deadline, f.now() + 12)
