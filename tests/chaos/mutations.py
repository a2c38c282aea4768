"""One safety taken away at a time: if nobody notices, the other scenarios prove nothing."""

from __future__ import annotations

from sqlalchemy import text

from runner.state import transitions
from runner.state.transitions import Message

from .fleet import Fleet
from .races import race
from .registry import scenario
from .workers import stale


@scenario("mutation-token", seconds=45, kills=True, mutation=("the attempt that was running",))
def mutation_token(f: Fleet) -> None:
    """Without the fencing token a stale outcome is believed, and ends the attempt that runs."""
    stale(f, CHAOS_MUTATION="token")


@scenario("mutation-claim", seconds=45, mutation=("overlapped", "run again"))
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


@scenario(
    "mutation-gate",
    seconds=45,
    mutation=("claims by w1 after it was cordoned", "claims were committed after the cordon"),
)
def mutation_gate(f: Fleet) -> None:
    """Without the gate a draining node claims; without its lock a claim and a cordon both win."""
    gate = transitions._CLAIM
    unlocked = gate.text.replace(" FOR SHARE", "")
    assert unlocked != gate.text
    transitions._CLAIM = text(unlocked)
    try:
        race(f, 2000)
    finally:
        transitions._CLAIM = gate
    f.deadline = f.now() + 30
    for s in (
        f.spawn("scheduler", "s1"),
        f.spawn("worker", "w1", CHAOS_MUTATION="gate"),
        f.spawn("worker", "w2", CHAOS_MUTATION="gate"),
    ):
        f.registered(s)
    f.warm()
    f.run("wide", 8, seconds=[0.02, 0.04])
    f.busy(4)
    f.cordon("w1")


@scenario("mutation-sweep", seconds=16, kills=True, mutation=("is queued", "is running"))
def mutation_sweep(f: Fleet) -> None:
    """Without the sweeps a lost message and a lost worker are never made good."""
    f.start(workers=2, CHAOS_MUTATION="resend,reap")
    f.run("one", 6, seconds=[1.0, 1.0])
    f.busy(4)
    f.rng.choice(f.workers()).kill()
    f.run("wide", 4)
    for _ in range(100):  # one of these comes between a ringing and its worker
        f.engines.flush()
        f.pause(0.0, 0.02)
