"""Scenarios by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .fleet import Fleet

Body = Callable[[Fleet], None]


@dataclass(frozen=True)
class Scenario:
    """A fault and what it is allowed to do.

    items: its numbers in the fault list. seconds: the time at scale 1, in which everything must have ended. kills: it
    may end tasks in the middle (the platform must bring them back). mutation: a safety is taken away, so the verdict
    must name this problem. takes: about how long it really takes, so that the long ones start first.
    default: it is run where none is named.
    """

    name: str
    body: Body
    items: tuple[int, ...]
    seconds: float
    kills: bool
    mutation: tuple[str, ...]
    takes: float
    default: bool = True

    @property
    def lease(self) -> float:
        """Seconds. Short where a lease has to run out; where none may, no slow machine shall make one run out."""
        return 3.0 if self.kills else 20.0


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str,
    *items: int,
    kills: bool = False,
    mutation: tuple[str, ...] = (),
    seconds: float = 300,
    takes: float = 15,
    default: bool = True,
) -> Callable[[Body], Body]:
    """Make a function a scenario: it brings up its fleet, does harm, and leaves the waiting and judging to others."""

    def register(body: Body) -> Body:
        assert name not in SCENARIOS, name
        SCENARIOS[name] = Scenario(name, body, items, seconds, kills, mutation, takes, default)
        return body

    return register
