"""Faults of the broker and of the database."""

from __future__ import annotations

import signal
import time

from runner.localcloud import process

from .fleet import Fleet
from .registry import scenario


@scenario("broker-flush", seconds=60)
def broker_flush(f: Fleet) -> None:
    """FLUSHALL at random: messages are hints, the database sends them again."""
    f.start(workers=2)
    for _ in f.rounds(6):
        f.run("wide", 3, seconds=[0.02, 0.2])
        f.pause(0.0, 0.4)
        f.engines.flush()
        f.pause(0.0, 0.4)


@scenario("broker-restart", seconds=60)
def broker_restart(f: Fleet) -> None:
    """KILL the broker while tasks run and start it again: no task is stopped, none is lost."""
    f.start(workers=2)
    for _ in f.rounds(2):
        f.run("wide", 2, seconds=[0.1, 0.5])
        f.busy(2)
        server = process.read(f.engines.valkey.pidfile)
        assert server is not None
        server.signal(signal.SIGKILL)
        f.pause(0.2, 1.5)
        f.engines.valkey.start()
        f.pause(0.2, 1.0)


def _crash(f: Fleet, seconds: float) -> None:
    """End PostgreSQL as `pg_ctl stop -m immediate` does, and start it again."""
    server = process.read(f.engines.postgres.pidfile)
    assert server is not None
    server.signal(signal.SIGQUIT)
    process.wait_gone(server, 10)
    time.sleep(seconds)
    f.engines.postgres.start()


@scenario("database-restart", seconds=60)
def database_restart(f: Fleet) -> None:
    """The database is away for less than a lease: nothing that runs is stopped."""
    f.lease = 8.0
    f.start(workers=2, schedulers=2)
    for _ in f.rounds(2):
        f.run("wide", 2, seconds=[0.1, 2.0])
        f.busy(3)
        f.pause(0.0, 0.5)
        _crash(f, f.rng.uniform(0.2, 1.5))
        f.wait(f.over, "all runs end")


@scenario("database-away", seconds=60, kills=True)
def database_away(f: Fleet) -> None:
    """The database is away for longer than a lease: what runs is stopped and comes back, once."""
    f.start(workers=2, schedulers=2)
    for _ in f.rounds(1):
        f.run("wide", seconds=[0.5, 6.0])
        f.busy(6)
        f.pause(0.0, 0.5)
        _crash(f, 5.0)
        f.wait(f.over, "all runs end")
