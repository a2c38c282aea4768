"""Who is told when something goes wrong, and when it is well again."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from runner.authoring.errors import AuthoringError

OCCASIONS = ("failure", "retry", "slow", "deadline", "recovery")
_PLAIN = ("json", "jsons", "xml", "xmls", "form", "forms")  # a webhook's URL need not hold a secret


class Notify:
    """Tells `to` about a DAG's runs (`@dag(notify=…)`) or a task (`@task(notify=…)`).

    `to` are names of connections whose URL Apprise knows (slack, msteams, mailto, …), or URLs of webhooks without a
    password (`json://host/path`). `on` are occasions: "failure"; "retry", a failed try of a task that will be tried
    again; "slow", it runs longer than `expected_duration`; "deadline", a run that has not succeeded `deadline` after
    the end of its data interval; "recovery", the first success after a failure. A task has no deadline, a run no
    retry. Each message is sent once. Raises AuthoringError.
    """

    def __init__(
        self,
        *to: str,
        on: str | Sequence[str] = ("failure", "recovery"),
        expected_duration: dt.timedelta | None = None,
        deadline: dt.timedelta | None = None,
    ) -> None:
        self.to = to
        self.on = (on,) if isinstance(on, str) else tuple(on)
        if expected_duration is not None and "slow" not in self.on:
            self.on += ("slow",)
        if deadline is not None and "deadline" not in self.on:
            self.on += ("deadline",)
        self.expected_duration = expected_duration
        self.deadline = deadline
        self._check()

    def _check(self) -> None:
        if not self.to:
            raise AuthoringError("Notify needs the name of a connection to tell")
        for where in self.to:
            if not isinstance(where, str) or not re.fullmatch(r"[\w.\-]+|\w+://\S+", where):
                raise AuthoringError(f"Notify: {where!r} is neither the name of a connection nor a URL")
            if "://" in where and (urlsplit(where).scheme not in _PLAIN or urlsplit(where).password):
                raise AuthoringError("Notify: a URL with secrets in it; make it a connection and give its name")
        wrong = [o for o in self.on if o not in OCCASIONS]
        if wrong:
            raise AuthoringError(f"Notify: on={wrong[0]!r} is none of {', '.join(OCCASIONS)}")
        for name, occasion in (("expected_duration", "slow"), ("deadline", "deadline")):
            value = getattr(self, name)
            if occasion in self.on and (not isinstance(value, dt.timedelta) or value <= dt.timedelta(0)):
                raise AuthoringError(f"Notify: on={occasion!r} needs {name}, a timedelta above 0, not {value!r}")

    def to_json(self) -> dict[str, Any]:
        """{"to", "on", "expected_seconds", "deadline_seconds"}"""
        found: dict[str, Any] = {"to": list(self.to), "on": list(self.on)}
        if self.expected_duration is not None:
            found["expected_seconds"] = self.expected_duration.total_seconds()
        if self.deadline is not None:
            found["deadline_seconds"] = self.deadline.total_seconds()
        return found


def to_json(who: str, notify: Notify | Sequence[Notify] | None, *, never: str) -> tuple[dict[str, Any], ...]:
    """The notifiers of a DAG or a task as JSON; `never` is the occasion it does not have. Raises AuthoringError."""
    if isinstance(notify, tuple) and all(isinstance(one, dict) for one in notify):
        return notify  # an option that is copied
    several = () if notify is None else (notify,) if isinstance(notify, Notify) else tuple(notify)
    for one in several:
        if not isinstance(one, Notify):
            raise AuthoringError(f"{who}: notify must be a Notify, or a list of them, not {one!r}")
        if never in one.on:
            raise AuthoringError(f"{who}: notify on={never!r} is not for {'tasks' if never == 'deadline' else 'DAGs'}")
    return tuple(one.to_json() for one in several)
