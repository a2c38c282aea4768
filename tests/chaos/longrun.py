"""`scripts/chaos --long N`: N tasks while workers, nodes, children, schedulers and the broker are KILLed at random."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from runner.state.transitions import Message

from .fleet import Fleet, Service
from .tally import Tally, read, tally
from .world import Engines

TASKS = 400  # of a run of noops/noops.py
AHEAD = 8  # runs under way at a time
SLOTS = 8
STALL_SECONDS = 120.0
SETTINGS = {"SLUICE_LEASE_SECONDS": "10", "SLUICE_HEARTBEAT_SECONDS": "1", "SLUICE_LOG_LEVEL": "warning"}
# How often each is chosen: a dead child is a thing of every day, a dead broker is not.
FAULTS = {"child": 10, "worker": 6, "node": 2, "scheduler": 4, "broker": 2, "duplicates": 4}


class _Long:
    def __init__(self, fleet: Fleet) -> None:
        self.f = fleet
        self.faults: Counter[str] = Counter()
        self._nodes = 0
        self._harm: dict[str, Callable[[], None]] = {
            "child": self._child,
            "worker": self._worker,
            "node": self._node,
            "scheduler": self._scheduler,
            "broker": self._broker,
            "duplicates": self._duplicates,
        }

    def worker(self) -> Service:
        self._nodes += 1
        watch = str(self.f.directory / "workers.refused")
        return self.f.spawn("worker", f"w{self._nodes}", slots=SLOTS, CHAOS_WATCH=watch, **SETTINGS)

    def break_something(self) -> None:
        kind = self.f.rng.choices(list(FAULTS), list(FAULTS.values()))[0]
        self._harm[kind]()
        self.faults[kind] += 1

    def _child(self) -> None:
        worker = self.f.rng.choice(self.f.workers())
        with contextlib.suppress(psutil.Error, IndexError):
            self.f.rng.choice(psutil.Process(worker.popen.pid).children(recursive=True)).kill()

    def _worker(self) -> None:
        victim = self.f.rng.choice(self.f.workers())
        victim.kill()
        self.f.restart(victim)

    def _node(self) -> None:
        """Every second time nobody says that it is dead: then its leases run out."""
        victim = self.f.rng.choice(self.f.workers())
        self.f.power_off(victim)
        if self.f.rng.random() < 0.5:
            self.f.gone(victim.node_id)
        self.worker()

    def _scheduler(self) -> None:
        victim = self.f.rng.choice(self.f.schedulers())
        victim.kill()
        self.f.restart(victim)

    def _broker(self) -> None:
        self.f.engines.kill_broker()
        self.f.engines.valkey.start()

    def _duplicates(self) -> None:
        """Ring again for what is under way."""
        rows = self.f.all("SELECT id, attempt, queue FROM task_instance WHERE state IN ('queued', 'running') LIMIT 50")
        self.f.doorbell.ring([Message(*row) for row in rows])


def long_run(directory: Path, n: int, seed: str, every: float) -> bool:
    """Run it, judge it and say what came out; False if anything was lost, overlapped or failed.

    every: tasks between two faults, on average.
    """
    world = Engines(directory / "long")
    try:
        world.start()
        fleet = Fleet(world, "long", seed, 1.0, float("inf"))
        try:
            return _run(fleet, n, every)
        finally:
            fleet.close()
    finally:
        world.close()


def _run(f: Fleet, n: int, every: float) -> bool:
    f.publish(f.pipelines("noops"))
    long = _Long(f)
    services = [f.spawn("scheduler", f"s{i + 1}", **SETTINGS) for i in range(2)]
    services += [long.worker() for _ in range(max(2, os.cpu_count() or 2))]
    for service in services:
        f.registered(service)
    began = time.monotonic()
    _work(f, long, n, every)
    seconds = time.monotonic() - began
    f.check_services()
    f.stop()
    began = time.monotonic()
    found = tally(read(f.ledger / "noops"))
    lost = _judge(f, found)
    judged = time.monotonic() - began
    _report(f, found, long.faults, seconds, judged)
    for problem in f.problems[:20]:
        print(f"  {problem}")
    counts = f"tasks={found.completed} lost={lost} killed=0 overlapped={len(found.overlapped) + len(found.twice)}"
    print(f"chaos failed: long run: {len(f.problems)} problems" if f.problems else f"chaos ok: scenarios=1 {counts}")
    return not f.problems


def _work(f: Fleet, long: _Long, n: int, every: float) -> None:
    """Create runs so that there is always enough to do, and break something every so many tasks, until all is over."""
    runs = -(-n // TASKS)
    gap = random.Random(f"{f.rng.random()}")
    next_fault = said = 0.0
    done, since, began = 0, time.monotonic(), time.monotonic()
    while True:
        under_way, left = f.all("SELECT count(*), coalesce(sum(unfinished), 0) FROM dag_run WHERE state = 'running'")[0]
        now_done = len(f.created) * TASKS - int(left)
        if now_done > done:
            done, since = now_done, time.monotonic()
        if len(f.created) < runs and under_way < AHEAD:
            f.run("noops", min(AHEAD - under_way, runs - len(f.created)))
        elif under_way == 0:
            return
        f.check_services()
        if time.monotonic() - since > STALL_SECONDS:
            f.problems.append(f"nothing moved for {STALL_SECONDS:g} s, {left} tasks are left")
        if f.problems:
            return
        if done >= next_fault and done:
            long.break_something()
            next_fault = done + gap.expovariate(1 / every)
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"{said - began:6.0f} s  {done} of {runs * TASKS} tasks, {long.faults.total()} faults", flush=True)
        time.sleep(0.1)


def _judge(f: Fleet, found: Tally) -> int:
    """Hold the ledger against the database; returns how many tasks are lost."""
    with f.engine.connect().execution_options(stream_results=True, max_row_buffer=10_000) as c:
        rows = c.exec_driver_sql("SELECT run_id, task_id, state, tries FROM task_instance")
        lost = wrong = total = 0
        for run, task, state, tries in rows:
            total += 1
            lost += not found.has_completed(run, task)
            wrong += state != "success" or tries != 1
    if lost or total != TASKS * len(f.created):
        f.problems.append(f"{lost} of {total} tasks never completed, of {TASKS * len(f.created)} that were created")
    if wrong:
        f.problems.append(f"{wrong} tasks have failed or used up a retry")
    bad = f.one("SELECT count(*) FROM dag_run WHERE state <> 'success' OR unfinished <> 0")
    if bad:
        f.problems.append(f"{bad} runs have not succeeded")
    for what in ("overlapped", "twice", "failed"):
        if getattr(found, what):
            f.problems.append(f"{what}: {sorted(getattr(found, what))[:5]} and so on")
    again = [(run, task, min(attempts)) for (run, task), attempts in found.repeated.items()]
    heard = f.one(
        """SELECT count(*) FROM unnest(CAST(:runs AS bigint[]), CAST(:tasks AS text[]), CAST(:attempts AS int[]))
               AS a(run, task, attempt)
           JOIN task_instance t ON t.run_id = a.run AND t.task_id = a.task
           JOIN event e ON e.run_id = t.run_id AND e.subject = CAST(t.id AS text)
           WHERE e.kind = 'task' AND e.state = 'success' AND e.attempt < a.attempt""",
        runs=[a[0] for a in again],
        tasks=[a[1] for a in again],
        attempts=[a[2] for a in again],
    )
    if heard:
        f.problems.append(f"{heard} tasks were run again although the database knew that they had completed")
    return lost


def _report(f: Fleet, found: Tally, faults: Counter[str], seconds: float, judged: float) -> None:
    interrupted = f.one("SELECT sum(interruptions) FROM task_instance")
    stale = sum(f.log(name).count("outcome refused") for name in {s.node_id for s in f.services if s.role == "worker"})
    kinds = " ".join(f"{kind}={n}" for kind, n in sorted(faults.items()))
    print(f"long: executions={found.executions} tasks={found.completed} runs={len(f.created)} seconds={seconds:.0f}")
    print(f"long: tasks/s={found.completed / seconds:.0f} judged in {judged:.1f} s")
    print(f"long: faults {kinds}")
    print(f"long: attempts killed={found.killed} interruptions={interrupted} run again unheard={len(found.repeated)}")
    print(f"long: duplicates refused: claims={f.refused()} outcomes={stale}", flush=True)
