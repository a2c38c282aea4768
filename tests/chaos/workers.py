"""Faults of workers and of what runs in them."""

from __future__ import annotations

import os
import signal
import time

from .fleet import Fleet
from .registry import scenario

STATE = "SELECT state FROM node WHERE node_id = :n"
HELD = "SELECT count(*) FROM task_instance WHERE state = 'running' AND node_id = :n"


@scenario("worker-kill", seconds=60, kills=True)
def worker_kill(f: Fleet) -> None:
    """KILL workers at random and start them again; one stays dead, so that only its lease brings its work back."""
    f.start(workers=3)
    f.run("diamonds", 6 * len(f.rounds(1)))
    f.busy(4)
    for _ in f.rounds(6):
        victim = f.rng.choice(f.workers())
        victim.kill()
        f.pause(0.0, 0.3)
        f.registered(f.restart(victim))
        f.run("wide", 2)
        f.pause(0.1, 0.5)
    f.busy(3)
    f.rng.choice(f.workers()).kill()


@scenario("child-kill", seconds=45, kills=True)
def child_kill(f: Fleet) -> None:
    """KILL the processes in which tasks run, each with a child of its own that must not outlive it."""
    f.start(workers=2)
    killed = 0
    for _ in f.rounds(3):
        f.run("wide", 2, seconds=[0.2, 0.6], grandchild=True)
        f.busy(4)
        for _ in range(5):
            found = [p for w in f.workers() for p in f.children(w)]
            if found:
                f.rng.choice(found).kill()
                killed += 1
            f.pause(0.1, 0.3)
    f.wait(f.over, "all runs end")
    if not killed:
        f.problems.append("no child was killed: the scenario proved nothing")


@scenario("bare-term", seconds=60)
def bare_term(f: Fleet) -> None:
    """TERM a busy worker, with no drain before: it finishes what runs and hands nothing on twice."""
    f.start(workers=2)
    for _ in f.rounds(6):
        f.run("wide", 2, seconds=[0.02, 0.2])
        f.busy()
        f.pause(0.0, 0.3)
        victim = f.rng.choice(f.workers())
        victim.signal(signal.SIGTERM)
        f.wait(lambda v=victim: not v.alive(), "the worker ends")
        f.registered(f.restart(victim))


@scenario("cgroup-term", seconds=60, kills=True)
def cgroup_term(f: Fleet) -> None:
    """TERM every process of a worker at once, as a unit without KillMode=mixed would: no retry is used up."""
    f.start(workers=2)
    for _ in f.rounds(3):
        f.run("wide", 2, seconds=[0.1, 0.4])
        f.busy(3)
        f.pause(0.0, 0.2)
        victim = f.rng.choice(f.workers())
        everyone = f.family(victim)
        f.rng.shuffle(everyone)
        victim.ending = True
        for pid in everyone:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
        f.wait(lambda v=victim: not v.alive(), "the worker ends")
        f.registered(f.restart(victim))


@scenario("full-drain", seconds=90)
def full_drain(f: Fleet) -> None:
    """Cordon → drained → TERM → terminated, with the replacement up first, as a roll does it."""
    f.start(workers=2)
    for i in f.rounds(5):
        f.run("wide", 2, seconds=[0.02, 0.3])
        f.busy()
        new = f.spawn("worker", f"w{i + 3}")
        f.registered(new)
        old = f.workers()[0]
        f.cordon(old.node_id)
        f.wait(lambda o=old: f.one(STATE, n=o.node_id) == "drained", f"{old.node_id} is drained")
        old.signal(signal.SIGTERM)
        f.wait(lambda o=old: not o.alive(), "the drained worker ends")
        f.gone(old.node_id)


@scenario("drain-restart", seconds=60, kills=True)
def drain_restart(f: Fleet) -> None:
    """KILL a worker while it drains and start it again: it claims nothing, and says that it is drained."""
    f.start(workers=1)
    for i in f.rounds(3):
        f.run("wide", 2, seconds=[0.1, 0.4])
        f.busy(2)
        f.registered(f.spawn("worker", f"w{i + 2}"))
        old = f.workers()[0]
        f.cordon(old.node_id)
        f.pause(0.0, 0.4)
        old.kill()
        again = f.restart(old)
        f.wait(lambda o=old: f.one(STATE, n=o.node_id) == "drained", f"{old.node_id} is drained")
        again.signal(signal.SIGTERM)


@scenario("sigstop-worker", seconds=75, kills=True)
def sigstop_worker(f: Fleet) -> None:
    """STOP a worker for longer than its lease, then CONT: its tasks were handed on, and it must not run them too."""
    f.start(workers=2)
    f.warm()
    for _ in f.rounds(1):
        f.run("wide", seconds=[2.0, 4.5])
        f.wait(lambda: all(len(f.children(w)) == 4 for w in f.workers()), "all slots are busy")
        victim = f.rng.choice(f.workers())
        victim.signal(signal.SIGSTOP)
        f.wait(lambda v=victim: f.one(HELD, n=v.node_id) == 0, "the stopped worker's tasks are handed on")
        f.pause(0.0, 1.0)
        victim.signal(signal.SIGCONT)
        f.wait(f.over, "all runs end")


def stale(f: Fleet, **environment: str) -> None:
    """A task ends in a worker that is stopped; the worker goes on while the next attempt runs elsewhere."""
    f.start(workers=2, slots=1, **environment)
    f.run("one", seconds=[1.5, 1.5])
    f.busy()
    first = f.one("SELECT node_id FROM task_instance WHERE state = 'running'")
    victim = next(w for w in f.workers() if w.node_id == first)
    f.wait(lambda: f.ledger_lines(), "the task starts")
    victim.signal(signal.SIGSTOP)
    f.wait(lambda: f.one("SELECT count(*) FROM task_instance WHERE state = 'running' AND attempt > 1"), "next attempt")
    f.wait(lambda: len(f.ledger_lines()) >= 3, "it starts")
    victim.signal(signal.SIGCONT)
    f.wait(f.over, "all runs end")
    time.sleep(0.5)
    log = (f.directory / f"{first}.log").read_text()
    if not environment and "outcome refused" not in log:
        f.problems.append("no stale outcome was seen: the scenario proved nothing")
    if [line["event"] for line in f.ledger_lines()] != ["start", "end", "start", "end"]:
        f.problems.append("the stale outcome ended the attempt that was running")


@scenario("stale-outcome", seconds=45, kills=True)
def stale_outcome(f: Fleet) -> None:
    """An outcome that comes after its lease was taken away is refused, and the attempt that runs is left alone."""
    stale(f)
