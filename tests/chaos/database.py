"""Faults of the database: away for less than a lease, for more, and where nobody says that it is away."""

from __future__ import annotations

from . import proxy
from .fleet import Fleet
from .registry import scenario


def _crash(f: Fleet, low: float, high: float) -> None:
    f.engines.crash_database()
    f.pause(low, high)
    f.engines.postgres.start()


@scenario("database-restart", 12, takes=20)
def database_restart(f: Fleet) -> None:
    """The database crashes and is away for less than a lease: nothing that runs is stopped."""
    f.start(workers=2, schedulers=2)
    for _ in f.rounds(2):
        f.run("wide", 2, seconds=[0.1, 2.0])
        f.busy(3)
        f.pause(0.0, 0.5)
        _crash(f, 0.2, 1.5)
        f.wait(f.over, "all runs end")


@scenario("database-away", 12, kills=True, takes=25)
def database_away(f: Fleet) -> None:
    """The database is away for longer than a lease: what runs is stopped and comes back, once."""
    f.start(workers=2, schedulers=2)
    for _ in f.rounds(1):
        f.run("wide", seconds=[0.5, 6.0])
        f.busy(6)
        f.pause(0.0, 0.5)
        _crash(f, 5.0, 5.0)
        f.wait(f.over, "all runs end")


@scenario("database-away-idle", 12, kills=True, takes=17)
def database_away_idle(f: Fleet) -> None:
    """Away for less and for more than a lease while nothing runs: what comes after is run as if nothing had been."""
    f.start(workers=2)
    for i in f.rounds(2):
        f.run("wide", seconds=[0.02, 0.1])
        f.wait(f.over, "all runs end")
        _crash(f, *((4.0, 5.0) if i % 2 else (0.2, 1.0)))
        f.run("diamonds", seconds=[0.02, 0.1])


@scenario("database-failover", 12, takes=20)
def database_failover(f: Fleet) -> None:
    """The database falls silent, another address answers later and the old connections are reset: as RDS fails over."""
    f.start(workers=2, schedulers=2, linked=True)
    for i in f.rounds(2):
        if i % 2 == 0:
            f.run("wide", 2, seconds=[0.1, 1.5])
            f.busy(3)
            f.pause(0.0, 0.5)
        for link in f.links.values():
            link.database.fault(proxy.SILENT)
        f.pause(0.2, 0.6)
        f.engines.crash_database()
        f.pause(0.2, 1.5)
        f.engines.postgres.start()
        for link in f.links.values():
            link.database.reset()
            link.database.heal()
        if i % 2:
            f.run("wide", 2, seconds=[0.1, 0.5])
        f.wait(f.over, "all runs end")
