"""The wheels a node needs: chosen from the lock file for a platform, fetched once, kept by their content.

    <cache>/<sha256>/<name>.whl     a wheel
    <cache>/chosen/<digest>         which wheel a line of the lock is on a platform: "<sha256>/<name>.whl"

What is chosen depends on the lock and the platform alone: of a version's files the lock names all hashes.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runner.bundle.environment import last_error, pip
from runner.settings import SluiceError, UsageError

# The oldest glibc among the images nodes boot from: Amazon Linux 2023.
_GLIBC_MINOR = 34
_LEGACY = {"x86_64": ("manylinux1", "manylinux2010", "manylinux2014"), "aarch64": ("manylinux2014",)}


@dataclass(frozen=True, order=True)
class Target:
    """What a release is built for: CPython `3.11` on `linux_x86_64`."""

    python: str = "3.11"
    platform: str = "linux_x86_64"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d+", self.python) or int(self.python[2:]) < 11:
            raise UsageError(f"python {self.python!r} is not a version nodes can run", "3.11 or newer, like 3.12")
        if self.machine not in _LEGACY or self.platform != f"linux_{self.machine}":
            known = " or ".join(f"linux_{m}" for m in _LEGACY)
            raise UsageError(f"platform {self.platform!r} is none nodes have", f"it is {known}")

    def __str__(self) -> str:
        return f"Python {self.python} on {self.platform}"

    @property
    def machine(self) -> str:
        """The processor as `uname -m` says it."""
        return self.platform.removeprefix("linux_")

    def platforms(self) -> list[str]:
        """The platform tags of wheels that run there, as pip wants them."""
        modern = [f"manylinux_2_{minor}_{self.machine}" for minor in range(_GLIBC_MINOR, 16, -1)]
        return [*modern, *(f"{name}_{self.machine}" for name in reversed(_LEGACY[self.machine])), self.platform]

    def wants(self, marker: Marker | None, extra: str = "") -> bool:
        """Whether a marker holds in any patch release of this Python: which one a node has is known only there."""
        patches = (f"{self.python}.0", f"{self.python}.99")
        return marker is None or any(marker.evaluate(self._environment(patch, extra)) for patch in patches)

    def _environment(self, full_version: str, extra: str) -> dict[str, str]:
        return {
            "extra": extra,
            "implementation_name": "cpython",
            "implementation_version": full_version,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": full_version,
            "python_version": self.python,
            "sys_platform": "linux",
        }


@dataclass(frozen=True)
class Pin:
    """One package of the lock file: name, version, and the sha256 of each file it may be."""

    name: str
    version: str
    marker: Marker | None
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}=={self.version} {' '.join(f'--hash=sha256:{h}' for h in sorted(self.hashes))}"


def pins_of(lock: str, target: Target) -> dict[str, Pin]:
    """The packages of a lock file that hold for this target, by name. Pure.

    Raises SluiceError for a line without a hash, and for two versions of one package.
    """
    found: dict[str, Pin] = {}
    for entry in re.sub(r"\\\n", " ", lock).splitlines():
        words = entry.partition(" #")[0].strip()
        if not words or words.startswith("#"):
            continue
        need = Requirement(words.partition("--hash")[0].strip())
        [specifier] = need.specifier if len(need.specifier) == 1 else [None]
        hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", words))
        if specifier is None or specifier.operator != "==" or not hashes:
            raise SluiceError(f"requirements.lock: {need} is not one version with hashes", "`make lock` writes it anew")
        pin = Pin(canonicalize_name(need.name), specifier.version, need.marker, hashes)
        if not target.wants(pin.marker):
            continue
        if pin.name in found:
            raise SluiceError(f"requirements.lock: two versions of {pin.name} for {target}", "`make lock`")
        found[pin.name] = pin
    return found


def closure(
    roots: Iterable[str],
    extras: Iterable[str],
    pins: Mapping[str, Pin],
    target: Target,
    fetch: Callable[[Sequence[Pin]], Mapping[str, Path]],
) -> list[Path]:
    """The wheels of everything these requirements (the Requires-Dist of our own wheel) need, sorted by name.

    `fetch` brings the wheels of pins, by name; it is called once for each level of the tree. Raises SluiceError
    for a package that the lock does not pin.
    """
    wheels: dict[str, Path] = {}
    needs: dict[str, list[Requirement]] = {}
    seen: set[tuple[str, str]] = set()
    todo = _wanted("sluice", map(Requirement, roots), extras, target)
    while todo:
        missing = sorted({name for name, _, _ in todo} - wheels.keys())
        for name, _, by in todo:
            if name not in pins:
                raise SluiceError(f"{by} needs {name}, which requirements.lock does not have", "`make lock` adds it")
        fetched = fetch([pins[name] for name in missing]) if missing else {}
        for name, wheel in fetched.items():
            wheels[name], needs[name] = wheel, [Requirement(r) for r in requires(wheel)]
        seen |= {(name, extra) for name, extra, _ in todo}
        found = {w for name, extra, _ in todo for w in _wanted(name, needs[name], [extra], target)}
        todo = {w for w in found if w[:2] not in seen}
    return sorted(wheels.values(), key=lambda p: p.name)


def _wanted(by: str, needs: Iterable[Requirement], extras: Iterable[str], target: Target) -> set[tuple[str, str, str]]:
    """(package, one of its extras or "", who needs it)."""
    extras = ["", *extras]
    return {
        (canonicalize_name(need.name), extra, by)
        for need in needs
        if any(target.wants(need.marker, own) for own in extras)
        for extra in ("", *need.extras)
    }


def requires(wheel: Path) -> list[str]:
    """What a wheel says that it needs. Raises SluiceError if it is not a wheel."""
    try:
        with zipfile.ZipFile(wheel) as content:
            name = next(n for n in content.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            return HeaderParser().parsestr(content.read(name).decode()).get_all("Requires-Dist", [])
    except (zipfile.BadZipFile, StopIteration, OSError) as e:
        raise SluiceError(f"{wheel.name} is not a wheel: {type(e).__name__} {e}".strip()) from None


class Wheels:
    """The cache of wheels on this machine, filled by pip from the index it is configured with."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def fetch(self, pins: Sequence[Pin], target: Target) -> dict[str, Path]:
        """The wheels of these pins, by name; those that are not in the cache are downloaded, with their hashes checked.

        Raises SluiceError if one has no wheel for this target or the index does not answer.
        """
        found = {pin.name: path for pin in pins if (path := self._cached(pin, target)) is not None}
        missing = [pin for pin in pins if pin.name not in found]
        if missing:
            self._download(missing, target)
            found |= {pin.name: path for pin in missing if (path := self._cached(pin, target)) is not None}
        if lost := [pin.name for pin in missing if pin.name not in found]:
            raise SluiceError(f"pip brought no wheel of {', '.join(lost)} for {target}")
        return found

    def _cached(self, pin: Pin, target: Target) -> Path | None:
        try:
            path = self._cache / self._choice(pin, target).read_text()
            good = hashlib.sha256(path.read_bytes()).hexdigest() == path.parent.name
        except OSError:
            return None
        return path if good else None

    def _choice(self, pin: Pin, target: Target) -> Path:
        return self._cache / "chosen" / hashlib.sha256(f"{target}: {pin}".encode()).hexdigest()

    def _download(self, pins: Sequence[Pin], target: Target) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".download-") as scratch:
            folder = Path(scratch)
            file = folder / "requirements.txt"
            file.write_text("".join(f"{pin}\n" for pin in pins))
            done = pip(
                *("download", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(file)),
                *("--dest", scratch, "--python-version", target.python, "--implementation", "cp"),
                *("--abi", f"cp{target.python.replace('.', '')}"),
                *(word for name in target.platforms() for word in ("--platform", name)),
            )
            if done.returncode:
                raise SluiceError(
                    f"wheels for {target} cannot be fetched: {last_error(done.stdout)}",
                    "is the package index reachable? `--no-wheels` builds a release for local process nodes",
                )
            wheels: dict[str, Path] = {
                canonicalize_name(path.name.split("-")[0]): path for path in folder.glob("*.whl")
            }
            for pin in pins:
                if pin.name in wheels:
                    self._keep(pin, target, wheels[pin.name])

    def _keep(self, pin: Pin, target: Target, wheel: Path) -> None:
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        kept = self._cache / digest / wheel.name
        kept.parent.mkdir(exist_ok=True)
        wheel.replace(kept)
        choice = self._choice(pin, target)
        choice.parent.mkdir(exist_ok=True)
        part = choice.with_name(f".{choice.name}.{os.getpid()}")
        part.write_text(f"{digest}/{wheel.name}")
        part.replace(choice)
