"""Faults of schedulers."""

from __future__ import annotations

import datetime as dt
import shutil
import signal

from .fleet import Fleet, Inconclusive
from .registry import scenario
from .world import LEDGER


@scenario("scheduler-kill", 10, takes=20)
def scheduler_kill(f: Fleet) -> None:
    """Two schedulers; KILL one at random, and let the other die again and again between commit and ringing."""
    f.start(workers=2, schedulers=1)
    crashing = f.spawn("scheduler", "s2", CHAOS_CRASH="0.5")
    f.registered(crashing)
    crashed = False

    def over() -> bool:
        """Whether all runs have ended; the one that died of ringing is started again."""
        nonlocal crashing, crashed
        if crashing.popen.poll() == 70:
            crashed = crashing.ending = True
            crashing = f.restart(crashing)
        return f.over()

    victim = next(s for s in f.schedulers() if s.node_id == "s1")
    for _ in f.rounds(6):
        f.run("diamonds", 2, seconds=[0.02, 0.2])
        f.pause(0.1, 0.6)
        victim.kill()
        f.pause(0.0, 0.5)
        victim = f.restart(victim)
        over()
    victim.kill()
    f.wait(over, "all runs end")
    while not crashed:  # idle slots must be rung for, and nobody else is left to do it
        f.run("diamonds", seconds=[0.02, 0.2])
        f.wait(over, "all runs end")
    crashing.kill()
    f.restart(victim)


@scenario("scheduler-kill-sweep", 10, kills=True, takes=25)
def scheduler_kill_sweep(f: Fleet) -> None:
    """Schedulers die in the middle of handing on a dead worker's tasks, before the commit or right after it."""
    f.start(workers=2, schedulers=0)
    crashed = 0
    crashing = [f.spawn("scheduler", f"s{i + 1}", CHAOS_CRASH_SWEEP="0.7") for i in range(2)]
    for _ in f.rounds(1):
        f.run("wide", seconds=[0.5, 2.0])
        victim = f.rng.choice(f.workers())
        f.busy(3, victim.node_id)
        victim.kill()
        f.registered(f.spawn("worker", f"{victim.node_id}x"))

        def revived() -> bool:
            nonlocal crashed
            for s in [s for s in crashing if not s.alive()]:
                if s.popen.returncode != 70:
                    return True  # for another reason: that is a problem
                s.ending = True
                crashed += 1
                crashing.remove(s)
                crashing.append(f.restart(s))
            return f.over()

        f.wait(revived, "all runs end")
    if not crashed:
        raise Inconclusive("no scheduler died in its sweep")


@scenario("scheduler-stop", 10, takes=25)
def scheduler_stop(f: Fleet) -> None:
    """STOP a scheduler for longer than a lease while tasks run, then CONT: it takes nothing away from who renews."""
    f.lease = 6.0
    f.start(workers=2, schedulers=2)
    for _ in f.rounds(1):
        f.run("wide", seconds=[3.0, 5.0])
        f.busy(6)
        stopped = f.rng.choice(f.schedulers())
        f.pause(0.0, 1.0)
        stopped.signal(signal.SIGSTOP)
        since = f.now()
        f.wait(lambda s=since: f.now() > s + 12.0, "longer than lease and margin")
        stopped.signal(signal.SIGCONT)
        f.run("diamonds", seconds=[0.02, 0.1])
        f.wait(f.over, "all runs end")
    if f.one("SELECT count(*) FROM event WHERE detail LIKE '%lease expired%'"):
        f.problems.append("a lease that was renewed was taken away")


TICKS = '''"""Due every minute, and behind."""

import datetime as dt

from ledger import recorded

from runner.authoring import dag, task


@task
@recorded
def tick() -> None: ...


@dag(schedule="* * * * *", start=dt.datetime.fromisoformat({start!r}), catchup=True)
def ticks() -> None:
    tick()
'''


@scenario("three-schedulers", 11)
def three_schedulers(f: Fleet) -> None:
    """Three schedulers and a DAG that is an hour behind: each minute's run is created once, none is missed."""
    f.start(workers=2, schedulers=3)
    start = dt.datetime.now(dt.UTC).replace(second=0, microsecond=0) - dt.timedelta(minutes=60)
    folder = f.directory / "ticks"
    folder.mkdir()
    shutil.copy(LEDGER, folder)
    (folder / "ticks.py").write_text(TICKS.format(start=start.isoformat()))
    f.publish(folder)
    f.wait(lambda: f.one("SELECT count(*) FROM dag_run WHERE dag_id = 'ticks'") >= 60, "an hour of runs")
    dates = [row[0] for row in f.all("SELECT logical_date FROM dag_run WHERE dag_id = 'ticks' ORDER BY 1")]
    wanted = [dates[0] + dt.timedelta(minutes=n) for n in range(len(dates))]
    if dates != wanted or dates[0] > start + dt.timedelta(minutes=1):
        f.problems.append(f"minutes are missing or twice: {len(dates)} runs from {dates[0]} to {dates[-1]}")
