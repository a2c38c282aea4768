"""What is asked about a waiting sensor, and what can be answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from runner.authoring.patience import Patience


@dataclass(slots=True)
class Waiting:
    """A sensor that waits. Times in seconds of the database's clock since 1970; `condition` is filled in."""

    id: int
    kind: str
    condition: dict[str, Any]
    patience: Patience
    since: float
    group: str = ""
    due: float = 0.0
    says: str | None = None

    @property
    def deadline(self) -> float:
        """When it has waited long enough."""
        return self.since + self.patience.timeout.total_seconds()


@dataclass(frozen=True)
class Found:
    """It is there; `value` (JSON) is what the sensor returns."""

    value: Any = None


@dataclass(frozen=True)
class Never:
    """It cannot come any more, or cannot be asked for: the sensor fails with this line."""

    why: str


@dataclass(frozen=True)
class NotYet:
    """Nothing yet. why: what hinders asking, shown with the sensor. again: when to look, if that is known."""

    why: str | None = None
    again: float | None = None


Answer = Found | Never | NotYet
Answers = Mapping[int, Answer]  # by sensor; one that is missing is not yet


class Kind(Protocol):
    """Who can tell about one kind of condition."""

    def group(self, condition: dict[str, Any]) -> str:
        """Sensors of one group are asked about together. Raises ValueError for a condition that makes no sense."""

    async def look(self, waiting: Sequence[Waiting], now: float) -> Answers:
        """Look for all of a group at once. What it raises hinders all of them, for now."""

    async def close(self) -> None:
        """Let go of connections."""
