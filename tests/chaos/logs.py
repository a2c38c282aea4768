"""What tasks print, after every kind of kill.

The guarantee that is checked. A line that a task has printed and flushed is on its node's disk. It is in the log
store, once, in order and whole, as soon as its worker has ended the attempt, or has been started again on that disk
after a KILL. Of a node that never comes back the store has the beginning of each attempt's output, without a gap, as
far as it had been shipped (once a second).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Callable

import psutil

from runner.storage import Storage
from runner.storage.logs import log_prefix, read_log

from .fleet import Fleet
from .registry import scenario

Attempt = tuple[str, str, str, int]  # dag, run, task, attempt
LINES = 20


def _spoken(f: Fleet) -> dict[Attempt, tuple[int, str]]:
    """How many lines each attempt has flushed for certain, and on which node."""
    found: dict[Attempt, tuple[int, str]] = {}
    path = f.ledger / "spoken.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else []:
        dag, run, task, attempt, node, lines = json.loads(line)
        found[dag, run, task, attempt] = (lines, node)
    return found


def _wanted(attempt: Attempt, lines: int) -> str:
    return "".join(f"line {n} of attempt {attempt[3]}: {'é' * (n % 40)}\n" for n in range(lines))


def _problems(f: Fleet, lost_nodes: frozenset[str] = frozenset()) -> list[str]:
    """What is missing, twice or out of order in the store."""
    storage = Storage.open(f"file://{f.directory}/storage")
    problems = []
    for attempt, (lines, node) in _spoken(f).items():
        stored = "".join(line for line in _stored(storage, attempt).splitlines(True) if line.startswith("line "))
        everything = _wanted(attempt, LINES)
        least = "" if node in lost_nodes else _wanted(attempt, lines)
        if not everything.startswith(stored):
            problems.append(f"log of {attempt} on {node}: has gaps or repeats: {stored[-100:]!r}")
        elif not stored.startswith(least):
            problems.append(f"log of {attempt} on {node}: {stored.count(chr(10))} of {lines} flushed lines are stored")
    return problems


def _stored(storage: Storage, attempt: Attempt) -> str:
    return read_log(storage, log_prefix(*attempt))[0]


def _harm(f: Fleet, rounds: int, harm: Callable[[], None]) -> None:
    f.start(workers=2)
    for _ in f.rounds(rounds):
        f.run("wide", 2, seconds=[0.2, 1.0], lines=LINES)
        f.busy(4)
        f.pause(0.1, 0.6)
        harm()
        f.wait(f.over, "all runs end")


def _complete(f: Fleet, lost_nodes: frozenset[str] = frozenset()) -> None:
    """Shipping takes its time; what is still missing then is a problem each."""
    with contextlib.suppress(Exception):
        f.wait(lambda: not _problems(f, lost_nodes), "all logs are stored", seconds=30)
    f.problems += _problems(f, lost_nodes)


@scenario("logs-child-kill", 19, kills=True)
def logs_child_kill(f: Fleet) -> None:
    """KILL tasks that print: every line they had flushed is in the log store."""

    def harm() -> None:
        found = [p for w in f.workers() for p in f.children(w)]
        for p in f.rng.sample(found, min(4, len(found))):
            with contextlib.suppress(psutil.NoSuchProcess):
                p.kill()

    _harm(f, 2, harm)
    _complete(f)


@scenario("logs-worker-kill", 19, kills=True, takes=20)
def logs_worker_kill(f: Fleet) -> None:
    """KILL a worker whose tasks print, and start it again: what is on its disk reaches the log store."""

    def harm() -> None:
        victim = f.rng.choice(f.workers())
        victim.kill()
        f.registered(f.restart(victim))

    _harm(f, 2, harm)
    _complete(f)


@scenario("logs-worker-term", 19)
def logs_worker_term(f: Fleet) -> None:
    """TERM a worker whose tasks print: when it has ended, the log store has everything."""

    def harm() -> None:
        victim = f.rng.choice(f.workers())
        victim.signal(signal.SIGTERM)
        f.wait(lambda: not victim.alive(), f"{victim.node_id} ends")
        f.problems.extend(p for p in _problems(f) if f"on {victim.node_id}:" in p)
        f.registered(f.restart(victim))

    _harm(f, 2, harm)
    _complete(f)


@scenario("logs-node-lost", 19, kills=True, takes=20)
def logs_node_lost(f: Fleet) -> None:
    """A node never comes back: its attempts' logs are the beginning of what they printed, without a gap."""
    lost: set[str] = set()

    def harm() -> None:
        victim = f.rng.choice(f.workers())
        f.power_off(victim)
        shutil.rmtree(f.directory / victim.node_id, ignore_errors=True)
        f.gone(victim.node_id)
        lost.add(victim.node_id)
        f.registered(f.spawn("worker", f"{victim.node_id}x"))

    _harm(f, 2, harm)
    _complete(f, frozenset(lost))
