"""The wheels that travel with a bundle: which, and the file in the archive that lists them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

MANIFEST = ".wheels.json"  # hidden, so no file of the author's has this name: those are left out


class Wheel(NamedTuple):
    """One wheel: its file name, the sha256 of its content, its size in bytes."""

    file: str
    sha256: str
    size: int

    @property
    def key(self) -> str:
        """Where it is kept in artifacts: by content, so bundles share it."""
        return f"wheels/{self.sha256}/{self.file}"

    @property
    def name(self) -> str:
        return re.sub(r"[-_.]+", "-", self.file.split("-")[0]).lower()

    @property
    def version(self) -> str:
        return self.file.split("-")[1]


class Manifest(NamedTuple):
    """The wheels of a bundle. `lock` is the sha256 of the requirements file they were made from."""

    lock: str
    wheels: tuple[Wheel, ...]

    def to_bytes(self) -> bytes:
        """The same manifest gives the same bytes."""
        data = {"lock": self.lock, "wheels": [w._asdict() for w in sorted(self.wheels)]}
        return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """The inverse of `to_bytes`."""
        found: dict[str, Any] = json.loads(data)
        return cls(found["lock"], tuple(Wheel(w["file"], w["sha256"], w["size"]) for w in found["wheels"]))


def manifest_of(bundle: Path) -> Manifest | None:
    """The wheels of an unpacked bundle, None if it needs none."""
    path = bundle / MANIFEST
    return Manifest.from_bytes(path.read_bytes()) if path.is_file() else None


def wheel_of(path: Path) -> Wheel:
    """A wheel file as it is listed."""
    data = path.read_bytes()
    return Wheel(path.name, hashlib.sha256(data).hexdigest(), len(data))
