"""The two kinds of sensors: `Sensor` runs the author's code in a worker, `DeferrableSensor` waits in a scheduler."""

from __future__ import annotations

import datetime as dt
from abc import abstractmethod
from typing import Any
from urllib.parse import urlsplit

from runner.authoring.context import Context
from runner.authoring.errors import AuthoringError
from runner.authoring.operators.base import Operator
from runner.authoring.patience import Patience
from runner.authoring.task import outputs_in

_DEFAULT = Patience()


class _Waiting(Operator):
    def __init__(
        self,
        task_id: str,
        *,
        poke_interval: dt.timedelta = _DEFAULT.poke_interval,
        timeout: dt.timedelta = _DEFAULT.timeout,
        soft_fail: bool = False,
        backoff: float = 1.0,
        max_interval: dt.timedelta = _DEFAULT.max_interval,
        poke_timeout: dt.timedelta | None = None,
        **options: Any,
    ) -> None:
        super().__init__(task_id, timeout=poke_timeout, **options)
        try:
            self.patience = Patience(
                poke_interval=poke_interval,
                timeout=timeout,
                soft_fail=soft_fail,
                backoff=backoff,
                max_interval=max_interval,
            )
        except AuthoringError as e:
            raise AuthoringError(f"task {task_id!r}: {e.what}") from None


class Sensor(_Waiting):
    """A sensor of the author's own: override `poke`, and `__init__` for what it needs to know.

    `poke` runs in a worker, and holds a slot only as long as it takes. Options as for `Patience`, and those of
    `@task`; `poke_timeout` bounds one call of `poke`.
    """

    @abstractmethod
    def poke(self, context: Context) -> Any:
        """Whether what it waits for is there. Anything true but True itself is the task's value."""

    def execute(self, context: Context) -> Any:
        """Look once. Raises Defer if it is not there yet, Fail or Skip if it has waited long enough."""
        found = self.poke(context)
        if not found:
            self.patience.defer(context)
        return None if found is True else found


class DeferrableSensor(_Waiting):
    """A sensor that waits in a scheduler, described by plain data; it holds no slot and survives restarts.

    All its text may hold expressions such as `{{ logical_date | ds }}`, filled in when its turn comes. Options as for
    `Patience`, and those of `@task` that make sense for what never runs in a worker (retries do not).
    """

    @abstractmethod
    def condition(self) -> dict[str, Any]:
        """What it waits for: JSON values, with `kind` saying who can tell (see runner.scheduler.sense)."""

    def execute(self, context: Context) -> None:
        """In `dag.test()` what a scheduler would wait for counts as there."""
        print(f"{self.task_id}: taken as there; a scheduler would wait for {self.condition()}")

    def _join(self, place: Any) -> None:
        condition = self.condition()
        if any(True for _ in outputs_in(condition)):
            raise AuthoringError(
                f"task {self.task_id!r}: what it waits for cannot depend on another task's output; "
                f"use a template, or a `Sensor` with a poke() of your own",
                place,
            )
        super()._join(place)
        if self._dag is not None:
            self._dag.nodes[self.task_id].sensor = {**condition, **self.patience.to_json()}


def connection_name(task_id: str, connection: Any) -> str:
    """Check that a connection is one a scheduler can find. Raises AuthoringError for a password in the pipeline."""
    if not isinstance(connection, str) or not connection:
        raise AuthoringError(f"task {task_id!r}: connection must be its name or a URL, not {connection!r}")
    if "://" in connection and urlsplit(connection).password:
        raise AuthoringError(f"task {task_id!r}: a URL with a password; make it a connection and give its name")
    return connection
