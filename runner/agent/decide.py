"""What the agent does next, as a pure function of what it sees.

It remembers nothing between two turns: an agent that was restarted in the middle of a drain sees the same facts and
goes on. A machine has one service, or two while it changes to another release in place; each is decided on alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

BOOT_SECONDS = 600.0  # a service that is not ready by then gives the instance back
LINGER_SECONDS = 5.0  # a web node that leaves still answers those who looked it up a moment ago
STUCK_SECONDS = 30.0  # a draining worker without a lease that has not said so by itself


class Act(Enum):
    """One thing to do; those of one turn are done in order."""

    CREATE_SCHEMA = "create the schema of an empty database"
    INSTALL = "bring the ordered release here"
    START = "start the service"
    CORDON = "take no new tasks, because the node has to go"
    STOP = "ask the service to end, then make it"
    HAND_ON = "what the dead service was running is free"
    DRAINED = "nothing runs here any more"
    RELIEVED = "its successor on this machine has taken over"
    SWITCH = "the ordered release is the one to start from"
    CONTINUE = "answer the launch hook: in service"
    ABANDON = "answer the launch hook: give the instance back"
    TERMINATE = "end the machine, as the drain's order says"
    COMPLETE = "answer the terminate hook: may go"
    EXIT = "end the agent"


@dataclass(frozen=True)
class View:
    """What the agent sees of one service. `node` is the state of the node's row: "" without one, None while the
    database is away or has no schema."""

    role: str
    node: str | None
    alive: bool
    resting: bool = False  # alive, but down at the moment: systemd starts it again
    ready: bool = False  # the row is ready and its heartbeat is fresh
    leases: int = 0
    seconds_left: float | None = None  # until the end of the drain
    drain_age: float = 0.0  # seconds since the row last changed
    terminating: bool = False  # the autoscaling group wants the instance gone
    leaving: bool = False  # the cloud says that the machine has to go: spot, maintenance
    launching: bool = False  # the launch hook is open
    boot_age: float = 0.0  # seconds since the agent saw the launch hook open
    told_to_stop: bool = False
    owned: bool = True  # the service ends with the agent
    after_drain: str = ""  # what the drain's order says of the machine: nothing, terminate, replace
    others: bool = False  # another service of this machine is up, or has not drained
    ordered: bool = False  # of the release that this machine is ordered to change to
    superseded: bool = False  # this machine is ordered to run another release than this one
    successor: bool = False  # and the node of that one is ready
    installed: bool = True
    current: bool = True  # the agent itself is started from this release
    empty: bool = False  # the database answers, and has no schema yet


def decide(view: View) -> list[Act]:
    """The next acts, none if there is nothing to do but wait."""
    if view.told_to_stop:
        return [Act.STOP] if view.alive and view.owned else [Act.EXIT]
    if view.role == "monitoring":  # no service of ours
        return [Act.COMPLETE] if view.terminating else [Act.CONTINUE] if view.launching else []
    if view.node is None:
        # It may be draining: a service that is down stays down until the database says what is wanted.
        return [Act.CREATE_SCHEMA] if view.empty and view.role == "scheduler" else []
    if view.node in ("", "booting", "ready"):
        return _serve(view)
    if view.role == "web" and view.alive and view.drain_age < LINGER_SECONDS:
        return []
    if view.node == "draining":
        return _drain(view)
    if view.alive:
        return [Act.STOP]
    if view.terminating:
        return _complete(view)
    if view.superseded and view.node == "drained":
        return [Act.RELIEVED]
    return [Act.TERMINATE] if view.after_drain and view.node == "drained" and not view.others else []


def _serve(view: View) -> list[Act]:
    if view.terminating or view.leaving:
        if view.node:
            return [Act.CORDON]
        if view.alive:  # never registered, so nothing can be running
            return [Act.STOP]
        return _complete(view) if view.terminating else []
    if view.superseded:
        return _give_way(view)
    if view.ordered and not view.installed:
        return [Act.INSTALL]
    acts = [] if view.alive else [Act.START]
    if view.launching and view.alive and view.ready:
        acts.append(Act.CONTINUE)
    elif view.launching and view.boot_age > BOOT_SECONDS:
        return [Act.ABANDON]
    if view.ordered and view.alive and view.ready and not view.others and not view.current:
        acts.append(Act.SWITCH)  # with the last task of the old release the agent changes, too
    return acts


def _give_way(view: View) -> list[Act]:
    """A worker serves until its successor does. What has no tasks is restarted: the others of its kind go on."""
    if view.role == "worker":
        if view.successor:
            return [Act.CORDON]
        acts = [Act.START] if view.node and not view.alive else []
        return acts if view.installed else [*acts, Act.INSTALL]
    if not view.installed:
        return [Act.INSTALL]
    return [Act.STOP] if view.alive else [Act.SWITCH]


def _drain(view: View) -> list[Act]:
    if view.resting:
        return [Act.STOP]  # it died, and is not to come back
    if not view.alive:
        # The service's children die with it, and its group was killed: nothing of it runs.
        return [Act.HAND_ON, Act.DRAINED] if view.leases else [Act.DRAINED]
    if view.role != "worker":
        return [Act.STOP]
    if view.seconds_left is not None and view.seconds_left <= 0:
        return [Act.STOP]
    if view.leases == 0 and view.drain_age > STUCK_SECONDS:
        return [Act.DRAINED]
    return []


def _complete(view: View) -> list[Act]:
    return [] if view.others else [Act.COMPLETE]
