"""The packages of a bundle: a file beside the pipelines that pins each of them, and all they need, to one version."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from runner.bundle.problem import BundleError, Problem

FILES = ("requirements.lock", "requirements.txt")  # the first that is there
# Where packages come from may be said; what would bring in others than those written here may not.
_OPTIONS = {"-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--trusted-host", "--no-index"}
_OPTIONS |= {"--no-binary", "--only-binary", "--prefer-binary", "--pre"}


class Pin(NamedTuple):
    """One package in one version. `line` of the file."""

    name: str
    version: str
    extras: frozenset[str]
    line: int


class Lock(NamedTuple):
    """A file of pins. `sha256` is of its content."""

    path: Path
    sha256: str
    pins: tuple[Pin, ...]


def read(directory: Path) -> Lock | None:
    """The lock of a bundle, None if it has none. Raises BundleError with every line that is no pin."""
    path = next((p for p in (directory / name for name in FILES) if p.is_file()), None)
    if path is None:
        return None
    content = path.read_bytes()
    pins, problems = parse(path.name, content.decode(errors="replace"))
    if problems:
        raise BundleError(directory, problems)
    return Lock(path, hashlib.sha256(content).hexdigest(), tuple(pins)) if pins else None


def parse(file: str, text: str) -> tuple[list[Pin], list[Problem]]:
    """The pins in a requirements file, and what is wrong with it. Pure."""
    pins: list[Pin] = []
    problems: list[Problem] = []
    hashed: dict[int, bool] = {}
    for line, entry in _entries(text):
        words = entry.split()
        if words[0].startswith("-"):
            if words[0].partition("=")[0] not in _OPTIONS:
                problems.append(Problem(file, line, f"{words[0]} is not possible in a bundle: pin every package here"))
            continue
        written = " ".join(w for w in words if not w.startswith("--hash"))
        try:
            found = Requirement(written)
        except InvalidRequirement:
            problems.append(Problem(file, line, f"{written!r} is no requirement, write NAME==VERSION"))
            continue
        version = _exact(found)
        if version is None:
            what = f"{found.name} is not pinned to one version, write {found.name}==VERSION (`uv pip compile` does)"
            problems.append(Problem(file, line, what))
            continue
        if found.marker is not None and not found.marker.evaluate():
            continue
        hashed[line] = "--hash" in entry
        pins.append(Pin(canonicalize_name(found.name), version, frozenset(found.extras), line))
    if any(hashed.values()):
        problems += [
            Problem(file, p.line, f"{p.name} has no --hash and others have one: all or none")
            for p in pins
            if not hashed[p.line]
        ]
    return pins, problems


def missing(file: str, pins: Iterable[Pin], needs: dict[str, list[str]]) -> list[Problem]:
    """What pinned packages need that is not pinned, or in another version. `needs`: name → its Requires-Dist. Pure."""
    by_name = {p.name: p for p in pins}
    problems = []
    for pin in by_name.values():
        for need in map(Requirement, needs.get(pin.name, ())):
            extras = pin.extras or {""}
            if need.marker is not None and not any(need.marker.evaluate({"extra": e}) for e in extras):
                continue
            found = by_name.get(canonicalize_name(need.name))
            wanted = f"{pin.name} {pin.version} needs {need.name}{need.specifier}"
            if found is None:
                problems.append(Problem(file, pin.line, f"{wanted}, which is not pinned here"))
            elif not need.specifier.contains(found.version, prereleases=True):
                problems.append(Problem(file, found.line, f"{wanted}, not {found.version}"))
    return problems


def _exact(found: Requirement) -> str | None:
    specifiers = list(found.specifier)
    if found.url or len(specifiers) != 1:
        return None
    [one] = specifiers
    return one.version if one.operator in ("==", "===") and "*" not in one.version else None


def _entries(text: str) -> Iterator[tuple[int, str]]:
    """(line it begins on, content) of every entry, continued lines joined, comments and blank lines left out."""
    start, so_far = 0, ""
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        start = start if so_far else number
        stripped = re.sub(r"(^|\s)#.*$", "", line).strip()
        if stripped.endswith("\\"):
            so_far += stripped[:-1] + " "
            continue
        entry, so_far = (so_far + stripped).strip(), ""
        if entry:
            yield start, entry
