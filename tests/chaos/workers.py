"""Faults of workers and of what runs in them."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

import psutil

from runner.state.transitions import Message

from .fleet import Fleet, Inconclusive
from .registry import scenario

EXPIRED = "SELECT count(*) FROM event WHERE kind = 'task' AND detail LIKE '%lease expired%'"
HOG_BYTES = 150 << 20  # a process that takes more is out of memory; what a task's process takes by itself is a third


@scenario("worker-kill", 4, kills=True, takes=20)
def worker_kill(f: Fleet) -> None:
    """KILL workers at random and start them again; one stays dead, so that only its lease brings its work back."""
    f.start(workers=3)
    f.run("diamonds", 6 * len(f.rounds(1)))
    f.busy(4)
    for _ in f.rounds(5):
        victim = f.rng.choice(f.workers())
        victim.kill()
        f.pause(0.0, 0.3)
        f.registered(f.restart(victim))
        f.run("wide", 2)
        f.pause(0.1, 0.5)
    f.busy(3)
    f.rng.choice(f.workers()).kill()


@scenario("child-kill", 4, kills=True)
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
                with contextlib.suppress(psutil.NoSuchProcess):
                    f.rng.choice(found).kill()
                    killed += 1
            f.pause(0.1, 0.3)
    f.wait(f.over, "all runs end")
    if not killed:
        raise Inconclusive("no child was killed")


@scenario("out-of-memory", 4, kills=True, takes=20)
def out_of_memory(f: Fleet) -> None:
    """Tasks that eat memory are KILLed as the kernel does it: twice costs no retry, always ends in failure."""
    f.start(workers=2)
    killed = 0
    for _ in f.rounds(1):
        f.run("one", 2, hog={"attempts": 2})
        doomed = f.run("one", hog={"attempts": 1000})
        f.doomed.update(doomed)
        f.run("wide", 2, seconds=[0.1, 0.3])
        while not f.over():
            for worker in f.workers():
                killed += _kill_hogs(worker.popen.pid)
            f.pause(0.05, 0.05)
            if f.now() > f.deadline:
                break
        for run in doomed:
            row = f.all("SELECT state, error, attempt FROM task_instance WHERE run_id = :r", r=run)[0]
            if row.state != "failed" or "SIGKILL" not in str(row.error):
                f.problems.append(f"a task that is killed every time is {row.state} after {row.attempt}: {row.error}")
    if killed < 5:
        raise Inconclusive(f"only {killed} were killed")


def _kill_hogs(worker: int) -> int:
    killed = 0
    with contextlib.suppress(psutil.Error):
        for p in psutil.Process(worker).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if p.memory_info().rss > HOG_BYTES:
                    p.kill()
                    killed += 1
    return killed


@scenario("orphaned-grandchild", 4, kills=True)
def orphaned_grandchild(f: Fleet) -> None:
    """KILL a worker whose tasks have started processes of their own: all are gone before another may run the task."""
    f.start(workers=2)
    for _ in f.rounds(2):
        f.run("wide", seconds=[0.5, 1.0], grandchild=True)
        victim = f.rng.choice(f.workers())
        f.wait(lambda v=victim: len(f.children(v)) >= 2, "tasks run")
        family = [psutil.Process(pid) for pid in f.family(victim) if psutil.pid_exists(pid)]
        before = f.one(EXPIRED)
        victim.kill()

        def gone(before: int = before, family: list[psutil.Process] = family) -> bool:
            expired = f.one(EXPIRED) > before  # looked at first: what lives after it has outlived its lease
            alive = any(_lives(p) for p in family)
            if expired and alive:
                f.problems.append("a task was handed on while what it had started was running")
            return not alive or expired

        f.wait(gone, "all it had started is gone")
        f.registered(f.restart(victim))
        f.wait(f.over, "all runs end")


def _lives(p: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return p.is_running() and p.status() != psutil.STATUS_ZOMBIE
    return False


@scenario("bare-term", 1, takes=20)
def bare_term(f: Fleet) -> None:
    """TERM a busy worker, with no drain before, while every message rings twice: the fence lets none run twice."""
    f.start(workers=0)
    for name in ("w1", "w2"):
        f.registered(f.spawn("worker", name, CHAOS_WATCH=str(f.directory / f"{name}.refused")))
    for _ in f.rounds(4):
        f.run("wide", 2, seconds=[0.02, 0.2])
        f.busy()
        f.pause(0.0, 0.3)
        victim = f.rng.choice(f.workers())
        # What Celery gives back of its unacknowledged messages while it shuts down, and more of it.
        rows = f.all("SELECT id, attempt, queue FROM task_instance WHERE state IN ('queued', 'running')")
        victim.signal(signal.SIGTERM)
        f.doorbell.ring([Message(*row) for row in rows])
        f.wait(lambda v=victim: not v.alive(), "the worker ends")
        f.registered(f.restart(victim))
    f.wait(f.over, "all runs end")
    f.wait(lambda: f.refused() > 0, "duplicates reach the fence and die there", seconds=30)


@scenario("stop-publish-kill", 3, takes=20)
def stop_publish_kill(f: Fleet) -> None:
    """A worker is stopped, the broker hands it messages that it never reads, and it is KILLed: they are sent again."""
    f.start(workers=2)
    f.warm()
    for i in f.rounds(2):
        stopped = f.workers()
        for worker in stopped:
            worker.signal(signal.SIGSTOP)
        f.run("wide", 2, seconds=[0.02, 0.1])
        f.wait(lambda: f.one("SELECT count(*) FROM task_instance WHERE state = 'queued'") > 0, "messages are sent")
        f.pause(0.2, 0.6)
        for worker in stopped:
            worker.kill()
        for number in range(2):
            f.registered(f.spawn("worker", f"w{2 * i + number + 3}"))
        f.wait(f.over, "all runs end")


@scenario("sigstop-worker", 3, kills=True, takes=20)
def sigstop_worker(f: Fleet) -> None:
    """STOP a worker for longer than its lease, then CONT: its tasks were handed on, and it must not run them too."""
    f.start(workers=2)
    f.warm()
    for _ in f.rounds(1):
        f.run("wide", seconds=[2.0, 4.5])
        f.wait(lambda: all(len(f.children(w)) >= 2 for w in f.workers()), "both are busy")
        victim = f.rng.choice(f.workers())
        victim.signal(signal.SIGSTOP)
        f.wait(lambda v=victim: f.running(v.node_id) == 0, "the stopped worker's tasks are handed on")
        f.pause(0.0, 1.0)
        victim.signal(signal.SIGCONT)
        f.wait(f.over, "all runs end")


def stale(f: Fleet, **environment: str) -> None:
    """A task ends in a worker that is stopped; the worker goes on while the next attempt runs elsewhere."""
    f.start(workers=2, slots=1, **environment)
    while True:
        run = f.run("one", seconds=[1.5, 1.5], later=[5.0, 5.0])[0]

        def lines(r: int = run) -> list[dict[str, Any]]:
            return [line for line in f.ledger_lines() if line["run_id"] == str(r)]

        first = f.wait(lines, "the task starts")[0]["node"]
        victim = next(w for w in f.workers() if w.node_id == first)
        victim.signal(signal.SIGSTOP)
        if f.running(first):
            break
        victim.signal(signal.SIGCONT)  # too late: it has ended already
        f.wait(f.over, "all runs end")
    f.wait(lambda: len(lines()) >= 3, "the next attempt starts elsewhere")
    victim.signal(signal.SIGCONT)
    f.wait(f.over, "all runs end")
    if not environment:
        f.wait(lambda: "outcome refused" in f.log(first), "the stale outcome is refused", seconds=60)
    if [line["event"] for line in lines()] != ["start", "end", "start", "end"]:
        f.problems.append("the stale outcome ended the attempt that was running")


@scenario("stale-outcome", 3, kills=True, takes=22)
def stale_outcome(f: Fleet) -> None:
    """An outcome that comes after its lease was taken away is refused, and the attempt that runs is left alone."""
    stale(f)
