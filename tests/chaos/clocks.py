"""Clocks that jump: no lease may end because of one, and nothing may wait for it to come right again."""

from __future__ import annotations

from .fleet import Fleet
from .registry import scenario

HOUR = 3600


def _jump(f: Fleet, seconds: int) -> None:
    f.all("UPDATE skew.clock SET ahead = make_interval(secs => :s) RETURNING ahead", s=seconds)


@scenario("clock-database", 13, takes=15)
def clock_database(f: Fleet) -> None:
    """The database's clock jumps an hour ahead, then two back, while tasks run: none is stopped, none waits."""
    f.engines.skew(f.database)
    f.engine.dispose()
    f.start(workers=2, schedulers=2)
    for _ in f.rounds(1):
        for ahead in (HOUR, -HOUR, 0):
            f.run("wide", seconds=[0.5, 1.5])
            f.run("diamonds", 2, seconds=[0.05, 0.3])
            f.busy(4)
            f.pause(0.0, 0.5)
            _jump(f, ahead)
            f.run("diamonds", seconds=[0.05, 0.3])
            f.wait(f.over, f"all runs end after the clock jumped to {ahead:+} s", seconds=60)


@scenario("clock-nodes", 13, takes=12)
def clock_nodes(f: Fleet) -> None:
    """The clocks of a worker and of a scheduler jump by an hour, each another way, while tasks run."""
    clocks = [f.directory / name for name in ("clock-1", "clock-2")]
    for i, clock in enumerate(clocks, start=1):
        f.spawn("scheduler", f"s{i}", CHAOS_CLOCK=str(clock))
        f.spawn("worker", f"w{i}", CHAOS_CLOCK=str(clock))
    for service in list(f.services):
        f.registered(service)
    for _ in f.rounds(1):
        for ahead in (HOUR, -HOUR, 0):
            f.run("wide", seconds=[0.3, 1.0])
            f.busy(4)
            clocks[0].write_text(str(ahead))
            clocks[1].write_text(str(-ahead))
            f.run("diamonds", 2, seconds=[0.05, 0.3])
            f.wait(f.over, "all runs end")
