"""A worker that does not reach the broker, the database, or either: cut, silent, or deaf to the answers."""

from __future__ import annotations

import itertools
import signal

from . import proxy
from .fleet import Fleet
from .registry import scenario

WHERE = ("broker", "database", "both")


def _outages(f: Fleet, where: str, low: float, high: float, rounds: int) -> None:
    """Each kind of outage in turn between one worker and `where`, at a moment when it is busy."""
    f.start(workers=2, linked=True)
    f.warm()
    kinds = f.rng.sample(proxy.KINDS, len(proxy.KINDS))
    for i in f.rounds(rounds):
        f.run("wide", 3, seconds=[0.05, 0.6])
        victim = f.rng.choice(f.workers())
        f.busy(2, victim.node_id)
        f.pause(0.0, 0.2)
        f.links[victim.node_id].fault(where, kinds[i % len(kinds)])
        f.pause(low, high)
        f.links[victim.node_id].heal()
        f.wait(f.over, f"all runs end after {where} was {kinds[i % len(kinds)]}")
        _takes_part(f, victim.node_id)


def _takes_part(f: Fleet, node_id: str) -> None:
    """After an outage the worker works again, and not only seems to."""
    before = sum(line["node"] == node_id for line in f.ledger_lines())

    def again() -> bool:
        if f.over():
            f.run("wide", seconds=[0.05, 0.2])
        return sum(line["node"] == node_id for line in f.ledger_lines()) > before

    f.wait(again, f"{node_id} takes tasks again", seconds=60)


@scenario("partition-broker", 7, takes=20)
def partition_broker(f: Fleet) -> None:
    """A worker loses the broker: what it runs goes on, the others do the rest, and it comes back."""
    _outages(f, "broker", 0.5, 2.0, 3)


@scenario("partition-database", 7, takes=25)
def partition_database(f: Fleet) -> None:
    """A worker loses the database for less than a lease: its tasks go on, their outcomes wait."""
    _outages(f, "database", 0.5, 2.0, 3)


@scenario("partition-both", 7, takes=25)
def partition_both(f: Fleet) -> None:
    """A worker loses both for less than a lease."""
    _outages(f, "both", 0.5, 2.0, 3)


@scenario("partition-lease", 7, kills=True, takes=45)
def partition_lease(f: Fleet) -> None:
    """A worker loses the database for longer than its lease: its tasks are stopped before others run them."""
    f.start(workers=2, linked=True)
    f.warm()
    kinds = f.rng.sample(proxy.KINDS, len(proxy.KINDS))
    for i in f.rounds(3):
        f.run("wide", seconds=[0.2, 5.0])
        victim = f.rng.choice(f.workers())
        f.busy(3, victim.node_id)
        f.links[victim.node_id].fault(f.rng.choice(["database", "both"]), kinds[i % len(kinds)])
        f.wait(lambda v=victim: f.running(v.node_id) == 0, f"{victim.node_id}'s tasks are handed on")
        f.pause(0.0, 1.0)
        f.links[victim.node_id].heal()
        f.wait(f.over, "all runs end")
        _takes_part(f, victim.node_id)


STEPS = ("before", "cordoned", "idle", "drained", "ending")


@scenario("partition-drain", 7, takes=60)
def partition_drain(f: Fleet) -> None:
    """A draining worker loses broker, database or both, in each way, at each step of its drain."""
    # Each step once at scale 1; all 45 cases from scale 9 on.
    ways = [[(step, *way) for way in itertools.product(WHERE, proxy.KINDS)] for step in STEPS]
    for cases in ways:
        f.rng.shuffle(cases)
    every = [case for cases in zip(*ways, strict=True) for case in cases]
    f.start(workers=1, linked=True)
    for i in f.rounds(5):
        step, where, kind = every[i % len(every)]
        new = f"w{i + 2}"
        f.link(new)
        f.registered(f.spawn("worker", new))
        _drain(f, f.workers()[0].node_id, step, where, kind)
        f.wait(f.over, f"all runs end after {where} was {kind} at {step}")


def _drain(f: Fleet, node_id: str, step: str, where: str, kind: str) -> None:
    old = next(w for w in f.workers() if w.node_id == node_id)
    link = f.links[node_id]

    def outage(now: str) -> None:
        if now == step:
            link.fault(where, kind)

    def over(now: str) -> None:
        if now == step:
            f.pause(0.5, 2.0)
            link.heal()

    f.run("wide", 2, seconds=[0.1, 0.6])
    f.busy(2, node_id)
    outage("before")
    f.cordon(node_id)
    over("before")
    outage("cordoned")
    f.pause(0.0, 0.3)
    over("cordoned")
    if step == "idle":
        f.wait(lambda: f.running(node_id) <= 1, f"{node_id} is nearly idle")
    outage("idle")
    over("idle")
    f.wait(lambda: f.state(node_id) == "drained", f"{node_id} is drained after {where} was {kind} at {step}")
    outage("drained")
    over("drained")
    outage("ending")
    old.signal(signal.SIGTERM)
    over("ending")
    f.wait(lambda: not old.alive(), f"{node_id} ends after {where} was {kind} at {step}")
    f.gone(node_id)
