"""How often a sensor looks and how long it waits."""

from __future__ import annotations

import dataclasses
import datetime as dt
from dataclasses import dataclass
from typing import Any, NoReturn

from runner.authoring.context import Context
from runner.authoring.errors import AuthoringError, Defer, Fail, Skip

_ZERO = dt.timedelta(0)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """A sensor looks every `poke_interval`. After `timeout` it has failed, or is skipped with `soft_fail`.

    With a `backoff` above 1 each interval is so many times the one before, up to `max_interval`. Without a timeout of
    its own a sensor waits seven days: none waits for ever. Raises AuthoringError.
    """

    poke_interval: dt.timedelta = dt.timedelta(seconds=30)
    timeout: dt.timedelta = dt.timedelta(days=7)
    soft_fail: bool = False
    backoff: float = 1.0
    max_interval: dt.timedelta = dt.timedelta(minutes=15)

    def __post_init__(self) -> None:
        for name in ("poke_interval", "timeout", "max_interval"):
            value = getattr(self, name)
            if not isinstance(value, dt.timedelta) or value <= _ZERO:
                raise AuthoringError(f"{name} of a sensor must be a timedelta above 0, not {value!r}")
        if self.poke_interval < dt.timedelta(seconds=0.5):
            raise AuthoringError(f"poke_interval of a sensor must be 0.5 s or more, not {self.poke_interval}")
        if isinstance(self.backoff, bool) or not isinstance(self.backoff, int | float) or not 1 <= self.backoff <= 10:
            raise AuthoringError(f"backoff of a sensor must be a number from 1 to 10, not {self.backoff!r}")

    def pause(self, waited: dt.timedelta) -> dt.timedelta:
        """How long until the next look. Needs no memory: intervals i, i·b, i·b² … are i + (b-1)·waited at each look."""
        if self.backoff == 1:
            return self.poke_interval
        longest = max(self.max_interval, self.poke_interval)
        return min(self.poke_interval + (self.backoff - 1) * max(waited, _ZERO), longest)

    def defer(self, context: Context) -> NoReturn:
        """Not yet, says a sensor that runs in a worker. Raises Defer; in the end Fail, or Skip with `soft_fail`."""
        now = dt.datetime.now(dt.UTC)
        waited = now - (context.waiting_since or now)
        if waited >= self.timeout:
            raise (Skip if self.soft_fail else Fail)(f"waited {self.timeout} in vain")
        raise Defer(min(self.pause(waited), self.timeout - waited), "not yet")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; durations in seconds."""
        return {k: v.total_seconds() if isinstance(v, dt.timedelta) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Patience:
        """The inverse of `to_json`; other keys are left alone."""
        values: dict[str, Any] = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data}
        values |= {name: dt.timedelta(seconds=values[name]) for name in _DURATIONS if name in values}
        return cls(**values)


_DURATIONS = ("poke_interval", "timeout", "max_interval")
