"""What can be wrong with a pipeline, said with the line of the pipeline file that is wrong."""

from __future__ import annotations

import datetime as dt
import sys
from typing import NamedTuple

# dataclasses: the __init__ it writes stands between an option and the line that gave it.
_NOT_THE_AUTHOR = (__name__.rpartition(".")[0], "dataclasses", "contextlib")


class Place(NamedTuple):
    """A line of a pipeline file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def caller() -> Place:
    """The line outside this package that led here: the author's own."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_NOT_THE_AUTHOR):
        frame = frame.f_back
    return Place(frame.f_code.co_filename, frame.f_lineno)


class AuthoringError(Exception):
    """A pipeline that cannot work as it is written. `place` is the line to change."""

    def __init__(self, what: str, place: Place | None = None) -> None:
        self.what = what
        self.place = place or caller()
        super().__init__(f"{self.place}: {what}")


class ReturnValueError(TypeError):
    """A task returned something that cannot be handed to another task as JSON."""


class Skip(Exception):
    """Raised by a task: there is nothing to do for this run. The task ends as skipped, not as failed."""


class Fail(Exception):
    """Raised by a task: it has failed, and trying again is pointless. No retry is used."""


class Defer(Exception):
    """Raised by a task: not yet; start me again after `delay`. It holds no slot meanwhile and uses up no retry."""

    def __init__(self, delay: dt.timedelta, why: str = "") -> None:
        self.delay = delay
        super().__init__(why)
