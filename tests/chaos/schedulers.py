"""Faults of schedulers."""

from __future__ import annotations

import datetime as dt
import shutil

from .fleet import LEDGER, Fleet
from .registry import scenario


@scenario("scheduler-kill", seconds=60)
def scheduler_kill(f: Fleet) -> None:
    """Two schedulers; KILL one at random, and let both die again and again between commit and ringing."""
    f.start(workers=2, schedulers=1)
    crashing = f.spawn("scheduler", "s2", CHAOS_CRASH="0.5")
    crashed = 0
    for _ in f.rounds(6):
        f.run("diamonds", 2, seconds=[0.02, 0.2])
        f.pause(0.1, 0.6)
        victim = next(s for s in f.schedulers() if s.node_id == "s1")
        victim.kill()
        f.pause(0.0, 0.5)
        f.restart(victim)
        if not crashing.alive():
            crashed += crashing.popen.returncode == 70
            crashing.ending = crashing.popen.returncode == 70
            crashing = f.restart(crashing)
    crashing.kill()
    if not crashed:
        f.problems.append("no scheduler died before it rang: the scenario proved nothing")


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


@scenario("three-schedulers", seconds=45)
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
