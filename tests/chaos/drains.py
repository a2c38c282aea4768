"""Drains, and what may come between their steps."""

from __future__ import annotations

import os
import shutil
import signal

from .fleet import Fleet
from .registry import scenario


@scenario("full-drain", 2)
def full_drain(f: Fleet) -> None:
    """Cordon → drained → TERM → terminated, with the replacement up first, as a roll does it."""
    f.start(workers=2)
    for i in f.rounds(4):
        f.run("wide", 2, seconds=[0.02, 0.3])
        f.busy()
        f.registered(f.spawn("worker", f"w{i + 3}"))
        old = f.workers()[0]
        f.cordon(old.node_id)
        f.wait(lambda o=old: f.state(o.node_id) == "drained", f"{old.node_id} is drained")
        f.terminate(old)


@scenario("drain-restart", 8, kills=True)
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
        f.wait(lambda o=old: f.state(o.node_id) == "drained", f"{old.node_id} is drained")
        f.terminate(again)


@scenario("drain-node-restart", 8, kills=True)
def drain_node_restart(f: Fleet) -> None:
    """The whole node dies while it drains, every process at once, and comes back with an empty disk."""
    f.start(workers=1)
    for i in f.rounds(2):
        f.run("wide", 2, seconds=[0.1, 0.4])
        f.busy(2)
        f.registered(f.spawn("worker", f"w{i + 2}"))
        old = f.workers()[0]
        f.cordon(old.node_id)
        f.pause(0.0, 0.4)
        f.power_off(old)
        shutil.rmtree(f.directory / old.node_id, ignore_errors=True)
        again = f.restart(old)
        f.wait(lambda o=old: f.state(o.node_id) == "drained", f"{old.node_id} is drained")
        f.terminate(again)


@scenario("drain-term", 1, 8)
def drain_term(f: Fleet) -> None:
    """TERM a worker that still drains, and start it again: what runs ends, and it stays out of service."""
    f.start(workers=2)
    for i in f.rounds(2):
        f.run("wide", 2, seconds=[0.2, 0.6])
        old = f.workers()[0]
        f.busy(2, old.node_id)
        f.cordon(old.node_id)
        f.pause(0.0, 0.2)
        old.signal(signal.SIGTERM)
        f.wait(lambda o=old: not o.alive(), f"{old.node_id} ends")
        again = f.restart(old)
        f.wait(lambda o=old: f.state(o.node_id) == "drained", f"{old.node_id} is drained")
        f.terminate(again)
        f.registered(f.spawn("worker", f"w{i + 3}"))


@scenario("cgroup-term", 5, kills=True)
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
