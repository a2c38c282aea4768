"""Scenarios by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .fleet import Fleet

Body = Callable[[Fleet], None]


@dataclass(frozen=True)
class Scenario:
    """A fault and what it is allowed to do.

    seconds: the time at scale 1, in which everything must have ended. kills: it may end tasks in the middle (the
    platform must bring them back). mutation: a safety is taken away, so the verdict must name this problem.
    """

    name: str
    body: Body
    seconds: float
    kills: bool = False
    mutation: tuple[str, ...] = ()


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str, *, seconds: float, kills: bool = False, mutation: tuple[str, ...] = ()
) -> Callable[[Body], Body]:
    """Make a function a scenario: it brings up its fleet, does harm, and leaves the waiting and judging to others."""

    def register(body: Body) -> Body:
        SCENARIOS[name] = Scenario(name, body, seconds, kills, mutation)
        return body

    return register
