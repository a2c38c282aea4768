"""Assets: what tasks update and what runs of DAGs wait for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from runner.authoring.errors import AuthoringError

_NAME = re.compile(r"[^\s\x00-\x1f\x7f]{1,500}")


class Condition:
    """Which assets must have been updated; combined with `|` (any of them) and `&` (all of them)."""

    def __or__(self, other: Condition) -> Condition:
        return _Several("any", (self, _checked(other)))

    def __and__(self, other: Condition) -> Condition:
        return _Several("all", (self, _checked(other)))

    def to_json(self) -> dict[str, Any]:
        """{"asset": name}, {"all": [conditions]} or {"any": [conditions]}"""
        raise NotImplementedError


class Asset(Condition):
    """Something that pipelines make and use, by a name of its own: usually the URL where it is.

    Two assets of one name are one. Nothing is ever looked for at the URL. Raises AuthoringError.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise AuthoringError(f"the name of an asset must be 1 to 500 characters without blanks, not {name!r}")
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Asset({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Asset) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def to_json(self) -> dict[str, Any]:
        """{"asset": name}"""
        return {"asset": self.name}


class _Several(Condition):
    def __init__(self, how: str, parts: Sequence[Condition]) -> None:
        self.how = how
        self.parts = parts

    def to_json(self) -> dict[str, Any]:
        return {self.how: [part.to_json() for part in self.parts]}


def split(schedule: Any) -> tuple[Any, dict[str, Any] | None]:
    """What `schedule=` says as (a schedule by time, a condition over assets): one of the two is None."""
    if isinstance(schedule, list | tuple) and any(isinstance(part, Condition) for part in schedule):
        return None, _Several("all", [_checked(part) for part in schedule]).to_json()
    if isinstance(schedule, Condition):
        return None, schedule.to_json()
    return schedule, None


def holds(condition: dict[str, Any], updated: set[str]) -> bool:
    """Whether a condition (as JSON) holds when these assets were updated."""
    if "asset" in condition:
        return condition["asset"] in updated
    if "any" in condition:
        return any(holds(part, updated) for part in condition["any"])
    return all(holds(part, updated) for part in condition["all"])


def _checked(part: Any) -> Condition:
    if not isinstance(part, Condition):
        raise AuthoringError(f"a DAG's schedule can combine assets with assets only, not with {part!r}")
    return part
