"""What the agent does next, as a pure function of what it sees.

It remembers nothing between two turns: an agent that was restarted in the middle of a drain sees the same facts and
goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

BOOT_SECONDS = 600.0  # a service that is not ready by then gives the instance back
STUCK_SECONDS = 30.0  # a draining worker without a lease that has not said so by itself


class Act(Enum):
    """One thing to do; those of one turn are done in order."""

    START = "start the service"
    CORDON = "take no new tasks, because the instance has to go"
    STOP = "ask the service to end, then make it"
    HAND_ON = "what the dead service was running is free"
    DRAINED = "nothing runs here any more"
    CONTINUE = "answer the launch hook: in service"
    ABANDON = "answer the launch hook: give the instance back"
    COMPLETE = "answer the terminate hook: may go"
    EXIT = "end the agent"


@dataclass(frozen=True)
class View:
    """What the agent sees. `node` is the state of the node's row: "" without one, None while the database is away."""

    role: str
    node: str | None
    alive: bool
    ready: bool = False  # the row is ready and its heartbeat is fresh
    leases: int = 0
    seconds_left: float | None = None  # until the end of the drain
    drain_age: float = 0.0  # seconds since the row last changed
    terminating: bool = False  # the autoscaling group wants the instance gone
    spot: bool = False  # a spot notice is there
    launching: bool = False  # the launch hook is open
    boot_age: float = 0.0  # seconds since the agent saw the launch hook open
    told_to_stop: bool = False


def decide(view: View) -> list[Act]:
    """The next acts, none if there is nothing to do but wait."""
    if view.told_to_stop:
        return [Act.STOP] if view.alive else [Act.EXIT]
    if view.node is None:
        # It may be draining: a service that is down stays down until the database says what is wanted.
        return []
    if view.node in ("", "booting", "ready"):
        return _serve(view)
    if view.node == "draining":
        return _drain(view)
    if view.alive:
        return [Act.STOP]
    return [Act.COMPLETE] if view.terminating else []


def _serve(view: View) -> list[Act]:
    if view.terminating or view.spot:
        if view.node:
            return [Act.CORDON]
        if view.alive:  # never registered, so nothing can be running
            return [Act.STOP]
        return [Act.COMPLETE] if view.terminating else []
    acts = [] if view.alive else [Act.START]
    if view.launching and view.alive and view.ready:
        acts.append(Act.CONTINUE)
    elif view.launching and view.boot_age > BOOT_SECONDS:
        return [Act.ABANDON]
    return acts


def _drain(view: View) -> list[Act]:
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
