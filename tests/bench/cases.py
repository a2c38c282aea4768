"""What is measured. A case yields the lines it found out; those that share a measurement share it."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from runner.settings import SluiceError
from tests.bench import history
from tests.bench.fleet import PIPELINES, Engines, Fleet, command
from tests.bench.measure import line, load, pss_mib, short

SLOTS = 8
FILES = 200
WARM_RUNS = 6  # a connection plans a statement for good at its sixth use
IDLE_SECONDS = 60.0
Line = dict[str, Any]

FILE = """
from runner.authoring import dag, task

@task
def extract() -> int:
    return {marker}

@task
def load(rows: int) -> None: ...

@dag
def pipeline{number}() -> None:
    load(extract())
"""


@dataclass
class Bench:
    """What the cases of one invocation share. `runs` is how often each is measured."""

    engines: Engines
    runs: int
    kept: dict[str, list[Line]] = field(default_factory=dict)

    @contextlib.contextmanager
    def fleet(self, *bundles: str) -> Iterator[Fleet]:
        """A fleet of its own for a case, with these bundles published."""
        fleet = Fleet(self.engines, slots=SLOTS)
        try:
            for name in bundles:
                fleet.publish(PIPELINES / name)
            fleet.start()
            yield fleet
        finally:
            fleet.close()

    def once(self, name: str, measure: Callable[[Bench], list[Line]]) -> list[Line]:
        """The lines of a measurement that several cases want."""
        if name not in self.kept:
            self.kept[name] = measure(self)
        return self.kept[name]


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def chain(bench: Bench, length: int) -> Iterator[Line]:
    """Run created → run succeeded."""
    with bench.fleet("noops") as fleet:
        for _ in range(WARM_RUNS):
            fleet.run(f"chain{length}")
        at = load()
        yield line(f"chain{length}", "s", [fleet.run(f"chain{length}") for _ in range(bench.runs)], at)


def fan(bench: Bench, bundle: str, width: int) -> list[Line]:
    """Ours and bare Celery take turns, so both meet the same machine."""
    with bench.fleet(bundle) as fleet:
        yardstick = fleet.yardstick()
        fleet.run("fan32" if bundle == "wide" else f"fan{width}")  # imported and forked before it counts
        at = load()
        ours, bare, cpu = [], [], []
        for i in range(bench.runs):
            before = fleet.cpu()
            took = fleet.run(f"fan{width}", look_seconds=0.005)
            after = fleet.cpu()
            cpu.append({name: (after[name] - before[name]) * 1000 / width for name in after})
            ours.append(width / took)
            bare.append(width / yardstick.fan(width))
            say(f"  {i + 1}/{bench.runs}: {ours[-1]:.0f} tasks/s, bare Celery {bare[-1]:.0f} tasks/s")
    ratio = short(statistics.median(ours) / statistics.median(bare))
    parts = {name: short(statistics.median(c[name] for c in cpu)) for name in cpu[0]}
    return [
        line(f"fan{width}", "tasks/s", ours, at, ratio=ratio),
        line(f"celery.fan{width}", "tasks/s", bare, at),
        line("cpu", "ms/task", [sum(c.values()) for c in cpu], at, parts=parts),
    ]


def fan200(bench: Bench) -> Iterator[Line]:
    yield from fan(bench, "noops", 200)[:2]


def fan2000(bench: Bench) -> Iterator[Line]:
    yield from fan(bench, "wide", 2000)


def fan5000(bench: Bench) -> Iterator[Line]:
    yield from bench.once("fan5000", lambda b: fan(b, "wide", 5000))[:2]


def cpu(bench: Bench) -> Iterator[Line]:
    yield from bench.once("fan5000", lambda b: fan(b, "wide", 5000))[2:]


def runs1000(bench: Bench) -> Iterator[Line]:
    """Many runs, few runs: the tasks per second of both."""
    with bench.fleet("noops") as fleet:
        fleet.run("diamond", runs=8, look_seconds=0.005)
        at = load()
        few, many = [], []
        for i in range(bench.runs):
            few.append(500 / fleet.run("diamond", runs=100, look_seconds=0.005))
            many.append(5000 / fleet.run("diamond", runs=1000, look_seconds=0.005))
            say(f"  {i + 1}/{bench.runs}: 100 runs {few[-1]:.0f} tasks/s, 1000 runs {many[-1]:.0f} tasks/s")
    yield line("runs100", "tasks/s", few, at)
    yield line("runs1000", "tasks/s", many, at, ratio=short(statistics.median(many) / statistics.median(few)))


def million(bench: Bench) -> Iterator[Line]:
    """fan200 before and after a million finished task instances."""
    with bench.fleet("noops") as fleet:
        fleet.run("fan200", look_seconds=0.005)
        empty_at = load()
        empty = [200 / fleet.run("fan200", look_seconds=0.005) for _ in range(bench.runs)]
        say(f"  inserting {history.TASKS:,} finished task instances with their events")
        history.insert(fleet.database, "fan200")
        fleet.run("fan200", look_seconds=0.005)
        at = load()
        full = [200 / fleet.run("fan200", look_seconds=0.005) for _ in range(bench.runs)]
    yield line("history.empty", "tasks/s", empty, empty_at)
    yield line("history", "tasks/s", full, at, ratio=short(statistics.median(full) / statistics.median(empty)))


def idle(bench: Bench) -> Iterator[Line]:
    """Nothing to do for a minute, in as many parts as there are measurements."""
    with bench.fleet() as fleet:
        write_files(fleet, marker=0)
        fleet.publish(fleet.directory / "files")
        time.sleep(3)  # the processes have read what is new
        at = load()
        cpu, pss, engines = [], [], []
        for _ in range(bench.runs):
            before, start = fleet.cpu(), time.monotonic()
            time.sleep(IDLE_SECONDS / bench.runs)
            took, after = time.monotonic() - start, fleet.cpu()
            used = {name: (after[name] - before[name]) / took * 100 for name in after}
            cpu.append(sum(used[name] for name in fleet.pids()))
            engines.append(sum(used.values()) - cpu[-1])
            pss.append(pss_mib(fleet.pids().values()))
        parts = {name: short(pss_mib([pid])) for name, pid in fleet.pids().items()}
    yield line("idle", "% of one core", cpu, at, engines=short(statistics.median(engines)))
    yield line("idle.pss", "MiB", pss, at, parts=parts)


def parse200(bench: Bench) -> Iterator[Line]:
    """From the start of `deployctl dags push` until another connection sees all DAGs in their new version."""
    with bench.fleet() as fleet:
        took = []
        at = load()
        for marker in range(bench.runs + 1):
            write_files(fleet, marker)
            seen = fleet.one("SELECT coalesce(max(bundle_version), '') FROM dag WHERE bundle = 'files'")
            start = time.perf_counter()
            with program(fleet, ["deployctl", "dags", "push", str(fleet.directory / "files"), "--env", "dev"]):
                fleet.wait(
                    lambda seen=seen: fleet.one(
                        "SELECT count(*) FROM dag WHERE active AND bundle = 'files' AND bundle_version <> %s", seen
                    ),
                    FILES,
                    "the files to be visible",
                    look_seconds=0.005,
                    most=60,
                )
                took.append(time.perf_counter() - start)
    yield line("parse200", "s", took[1:], at)  # the first one wrote byte code


def trigger(bench: Bench) -> Iterator[Line]:
    """From the start of `runner dag trigger` until the first line of the first task."""
    with bench.fleet("noops") as fleet:
        fleet.run("clock")
        took = []
        at = load()
        for _ in range(bench.runs + 1):
            runs = fleet.one("SELECT count(*) FROM xcom")
            start = time.time()
            with program(fleet, ["runner", "dag", "trigger", "clock"]):
                fleet.wait(lambda: fleet.one("SELECT count(*) FROM xcom"), runs + 1, "the task to end", most=60)
            took.append(fleet.one("SELECT value FROM xcom ORDER BY run_id DESC LIMIT 1") - start)
    yield line("trigger", "s", took[1:], at)


@contextlib.contextmanager
def program(fleet: Fleet, argv: list[str]) -> Iterator[None]:
    """A command of an operator, from start to end. Raises SluiceError if it fails."""
    log = fleet.directory / "command.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [*command(argv[0]), *argv[1:]], env=fleet.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        ) as child,
    ):
        try:
            yield
        except BaseException:
            child.kill()
            raise
        if child.wait() != 0:
            raise SluiceError(f"`{' '.join(argv[:3])}` exited with {child.returncode}", log.read_text()[-600:])


def write_files(fleet: Fleet, marker: int) -> None:
    """A folder of small pipeline files, one DAG each; another marker makes every file another one."""
    folder = fleet.directory / "files"
    folder.mkdir(exist_ok=True)
    for number in range(FILES):
        (folder / f"pipeline{number}.py").write_text(FILE.format(number=number, marker=json.dumps(marker)))


@dataclass(frozen=True)
class Case:
    """One name on the command line. A quick one is measured unless others are asked for."""

    measure: Callable[[Bench], Iterator[Line]]
    meaning: str
    quick: bool = True


CASES = {
    "chain4": Case(lambda b: chain(b, 4), "4 chained no-op tasks, run created → run succeeded, s"),
    "chain20": Case(lambda b: chain(b, 20), "20 chained no-op tasks, s"),
    "fan200": Case(fan200, "one run of 200 independent tasks, 8 slots, beside bare Celery, tasks/s"),
    "parse200": Case(parse200, "200 small pipeline files, `deployctl dags push` → all visible, s"),
    "trigger": Case(trigger, "`runner dag trigger` started → first task started, s"),
    "idle": Case(idle, "scheduler, worker and web with 200 DAGs for 60 s, % of one core and MiB (PSS)"),
    "fan2000": Case(fan2000, "as fan200, with 2,000 tasks, and the CPU time; for profiles", quick=False),
    "fan5000": Case(fan5000, "as fan200, with 5,000 tasks", quick=False),
    "cpu": Case(cpu, "CPU time per no-op task in fan5000: our processes, database and broker, ms", quick=False),
    "runs1000": Case(runs1000, "1,000 runs of a 5-task DAG with fan-in, beside 100 runs, tasks/s", quick=False),
    "history": Case(million, "fan200 before and after 1,000,000 finished task instances, tasks/s", quick=False),
}
