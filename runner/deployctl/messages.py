"""Terraform's `-json` stream: messages, diagnostics, and the one line that a failed run comes down to. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.deployctl.planned import check_format
from runner.settings import SluiceError

SUPPORTED_UI = 1
_LONGEST = 400
# The caller's mistake, found before anything was read or changed.
_BAD_VALUE = ("Invalid value for variable", "No value for required variable", "Invalid value for input variable")
_GIVEN = re.compile(r"<value for var\.(\w+)>")  # the place of an error in a -var
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Summaries that say that something is wrong but not what: the detail does.
_VAGUE = re.compile(
    r"^(Invalid |Unsupported |Missing |Reference to |Failed to |Error |Unable to |No value|Resource precondition"
    r"|Resource postcondition|Inconsistent |Incorrect |local-exec|Value for |Query returned|Error:)"
)


@dataclass(frozen=True)
class Diagnostic:
    """An error or a warning, with the place it speaks of where terraform knows one."""

    severity: str
    summary: str
    detail: str = ""
    address: str = ""
    place: str = ""

    def line(self) -> str:
        """Where, what and, where the summary alone says too little, why: in one line."""
        where = self.address or self.place
        what = _squeeze(self.summary)
        first = _squeeze(self.detail.strip().split("\n\n")[0])
        if first and first != what and _VAGUE.match(what):
            what = f"{what}: {first}"
        what = what if len(what) <= _LONGEST else what[: _LONGEST - 1] + "…"
        return f"{where}: {what}" if where else what


@dataclass(frozen=True)
class Message:
    """One message of the stream; `kind` is terraform's `type`, and unknown kinds are kept as they are."""

    kind: str
    text: str
    address: str = ""
    action: str = ""
    seconds: float = 0.0
    diagnostic: Diagnostic | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Lock:
    """Who holds a state lock, as terraform tells it."""

    id: str
    who: str
    operation: str
    created: datetime | None

    @classmethod
    def from_json(cls, text: str | bytes) -> Lock:
        """Read the lock object that terraform keeps beside the state."""
        found = json.loads(text)
        created = re.sub(r"\.\d+", "", str(found.get("Created", "")))  # nanoseconds
        return cls(
            id=str(found.get("ID", "")),
            who=str(found.get("Who", "")),
            operation=str(found.get("Operation", "")),
            created=datetime.fromisoformat(created).astimezone(UTC) if created else None,
        )

    @property
    def verb(self) -> str:
        """What its holder does: `apply`."""
        return self.operation.removeprefix("OperationType").lower()

    def line(self, now: datetime | None = None) -> str:
        """`ann@laptop (apply) since 2030-01-02 03:04:05 UTC, 5 min ago`."""
        text = f"{self.who or 'somebody'}{f' ({self.verb})' if self.verb else ''}"
        if self.created is None:
            return text
        minutes = int(((now or datetime.now(UTC)) - self.created).total_seconds() // 60)
        return f"{text} since {self.created:%Y-%m-%d %H:%M:%S} UTC, {minutes} min ago"


class TerraformError(SluiceError):
    """A terraform run failed; the message is its first error in one line."""

    def __init__(self, message: str, hint: str = "", detail: str = "") -> None:
        super().__init__(message, hint)
        self.detail = detail
        self.diagnostics: tuple[Diagnostic, ...] = ()  # all errors of the run


class StalePlanError(TerraformError):
    """Somebody else changed the state after this plan was made; nothing of it was applied."""


class LockedError(TerraformError):
    """Another run holds the state lock of this stack."""

    def __init__(self, message: str, hint: str, lock: Lock) -> None:
        super().__init__(message, hint)
        self.lock = lock


def parse(line: str) -> Message | None:
    """Read one line; None if it is no UI message. Raises SluiceError for an unknown major version of the stream."""
    if not line.startswith("{"):
        return None
    try:
        raw = json.loads(line)
    except ValueError:
        return None
    if not isinstance(raw, dict) or "@message" not in raw:
        return None
    kind = str(raw.get("type", "log"))
    if kind == "version":
        check_format("-json", str(raw.get("ui", "")), SUPPORTED_UI)
    about = raw.get("hook") or raw.get("change") or {}
    resource = about.get("resource") or {}
    return Message(
        kind=kind,
        text=str(raw["@message"]),
        address=str(resource.get("addr", "")),
        action=str(about.get("action", "")),
        seconds=float(about.get("elapsed_seconds", 0) or 0),
        diagnostic=_diagnostic(raw["diagnostic"]) if "diagnostic" in raw else None,
        raw=raw,
    )


def lock_of(detail: str) -> Lock | None:
    """Read the `Lock Info` block of a diagnostic; None if there is none."""
    if "Lock Info" not in detail:
        return None
    found = dict(re.findall(r"^\s*(ID|Who|Operation|Created):\s*(.*?)\s*$", detail, re.MULTILINE))
    return Lock(
        id=found.get("ID", ""),
        who=found.get("Who", ""),
        operation=found.get("Operation", ""),
        created=_go_time(found.get("Created", "")),
    )


def failure(errors: Sequence[Diagnostic], text: str, code: int, log: Path) -> TerraformError:
    """The exception a failed run comes down to: a held lock, else its first error, else its last words."""
    found = _failure(errors, text, code, log)
    found.diagnostics = tuple(errors)
    return found


def _failure(errors: Sequence[Diagnostic], text: str, code: int, log: Path) -> TerraformError:
    for error in errors:
        lock = lock_of(error.detail)
        if lock:
            return LockedError(
                f"the state is locked by {lock.line()}",
                "wait for it with --wait 10m; if that run is dead: "
                f"`deployctl infra unlock --id {lock.id}`, same --env and --stack",
                lock,
            )
        if error.summary == "Error acquiring the state lock" and "PreconditionFailed" in error.detail:
            # It was held, and given back before terraform could read by whom.
            return TerraformError("the state is locked by a run that has just ended", "run it again")
        if error.summary == "Saved plan is stale":
            return StalePlanError("somebody else applied this stack after this plan was made", "run it again")
    if errors:
        first = next((e for e in errors if e.address and e.summary != "execution halted"), errors[0])
        more = sum(1 for e in errors if e.summary != "execution halted") - 1
        rest = f" (and {more} more)" if more > 0 else ""
        given = _GIVEN.fullmatch(first.place.rpartition(":")[0])
        if given:
            what = _squeeze(f"{first.summary}. {first.detail}").rstrip(".")
            unread = TerraformError(
                f"the value given for {given[1]} cannot be read: {what}",
                "text needs quotes inside: --var 'NAME={key=\"text\"}'",
            )
            unread.exit_code = 2
            return unread
        failed = TerraformError(first.line() + rest, f"all of it: {log}", detail=first.detail)
        if first.summary in _BAD_VALUE:
            failed.exit_code = 2
        return failed
    return TerraformError(_last_words(text) or f"terraform exited with status {code}", f"all of it: {log}", text)


def _diagnostic(raw: Mapping[str, Any]) -> Diagnostic:
    extent = raw.get("range") or {}
    line = (extent.get("start") or {}).get("line")
    return Diagnostic(
        severity=str(raw.get("severity", "error")),
        summary=str(raw.get("summary", "")),
        detail=str(raw.get("detail", "")),
        address=str(raw.get("address", "")),
        place=f"{extent.get('filename', '')}:{line}" if line else "",
    )


def _last_words(text: str) -> str:
    """What an error without a diagnostic says: the line with `Error:`, without the box drawn around it."""
    lines = [_squeeze(re.sub(r"^[\s│╷╵|]+", "", _COLOURS.sub("", row))) for row in text.splitlines()]
    lines = [row for row in lines if row]
    for row in lines:
        if row.startswith("Error: "):
            return row.removeprefix("Error: ")[:_LONGEST]
    return lines[-1][:_LONGEST] if lines else ""


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _go_time(text: str) -> datetime | None:
    """`2030-01-02 03:04:05.123456789 +0000 UTC`; Go prints nanoseconds, Python reads microseconds."""
    match = re.match(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)? ([+-]\d{4})", text)
    if not match:
        return None
    return datetime.strptime(" ".join(match.groups()), "%Y-%m-%d %H:%M:%S %z").astimezone(UTC)
