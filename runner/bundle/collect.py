"""At push time: download or build the wheels that a bundle's lock names, for this machine and for the fleet's."""

from __future__ import annotations

import email
import hashlib
import os
import platform
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from runner.bundle.environment import last_error, pip
from runner.bundle.problem import BundleError, Problem
from runner.bundle.requirements import Lock, missing
from runner.bundle.wheels import Manifest, Wheel, wheel_of

FLEET = ("x86_64",)  # what a fleet's machines are where nothing else is said
ARCHITECTURES = ("x86_64", "aarch64")


class Collected(NamedTuple):
    """The wheels of a lock. `here` fits this machine, `all` what the fleet needs; `get` brings their content."""

    here: Manifest
    all: Manifest
    get: Callable[[Wheel], bytes]


def cache_directory() -> Path:
    """Where wheels and environments of this user's pushes are kept."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "sluice" / "bundles"


def collect(lock: Lock, cache: Path, architectures: Sequence[str] = ()) -> Collected:
    """All wheels of a lock, from the cache where this lock was collected before, else with pip.

    What exists as a source distribution only is built, for this machine. `architectures` are the fleet's; without
    any, this machine's if it runs Linux. Raises BundleError for a package that is not to be had, or that needs one
    which is not pinned.
    """
    wanted = list(architectures) or ([platform.machine()] if sys.platform == "linux" else list(FLEET))
    here = _collect(lock, cache, None)
    found = list(here.wheels) if sys.platform == "linux" and platform.machine() in wanted else []
    for architecture in wanted:
        if sys.platform != "linux" or architecture != platform.machine():
            found += _collect(lock, cache, architecture).wheels
    return Collected(here, Manifest(lock.sha256, tuple(sorted(set(found)))), lambda w: (cache / w.key).read_bytes())


def _collect(lock: Lock, cache: Path, architecture: str | None) -> Manifest:
    about = "\0".join([lock.sha256, sys.version, sys.base_prefix, sys.platform, platform.machine(), str(architecture)])
    known = cache / "locks" / f"{hashlib.sha256(about.encode()).hexdigest()}.json"
    if known.is_file():
        manifest = Manifest.from_bytes(known.read_bytes())
        if all((cache / w.key).is_file() for w in manifest.wheels):
            return manifest
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".collect-", dir=cache) as temporary:
        folder = Path(temporary)
        _download(lock, folder, architecture)
        paths = sorted(folder.glob("*.whl"))
        problems = missing(lock.path.name, lock.pins, {w.name: _needs(p) for p in paths for w in (wheel_of(p),)})
        if problems:
            raise BundleError(lock.path.parent, problems)
        wheels = tuple(wheel_of(p) for p in paths)
        for path, wheel in zip(paths, wheels, strict=True):
            target = cache / wheel.key
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        manifest = Manifest(lock.sha256, wheels)
        known.parent.mkdir(parents=True, exist_ok=True)
        part = folder / "manifest.json"
        part.write_bytes(manifest.to_bytes())
        part.rename(known)
    return manifest


def _download(lock: Lock, folder: Path, architecture: str | None) -> None:
    if architecture is None:
        words = ["wheel", "--no-deps", "--wheel-dir", str(folder)]
    else:
        # Built here it would be for this machine: for another one only what is built already.
        words = ["download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), *_tags(architecture)]
    done = pip(*words, "-r", lock.path.name, cwd=lock.path.parent)
    if done.returncode:
        said = last_error(done.stdout)
        lines = [p.line for p in lock.pins if f"{p.name}==" in done.stdout.lower().replace("_", "-")]
        where = f" for {architecture}" if architecture else ""
        raise BundleError(lock.path.parent, [Problem(lock.path.name, lines[0] if lines else 0, f"pip{where}: {said}")])


def _tags(architecture: str) -> list[str]:
    # pip takes each platform as it is written: a wheel for an older glibc runs too, but has to be named.
    names = [f"manylinux_2_{n}_{architecture}" for n in range(34, 4, -1)]
    names += [f"{name}_{architecture}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    version = f"{sys.version_info[0]}{sys.version_info[1]}"
    words = ["--python-version", version, "--implementation", "cp"]
    for abi in (f"cp{version}", "abi3", "none"):
        words += ["--abi", abi]
    for name in names:
        words += ["--platform", name]
    return words


def _needs(wheel: Path) -> list[str]:
    """The Requires-Dist of a wheel. Raises BundleError for a file that is no wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            [name] = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA")]
            return email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    except (zipfile.BadZipFile, ValueError):
        raise BundleError(wheel.parent, [Problem(wheel.name, 0, "is no wheel")]) from None
