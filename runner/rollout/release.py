"""Releases: a content-addressed archive of everything a node runs.

    releases/<id>.tar.gz    wheel/ (ours)  wheels/ (what it needs)  systemd/  ansible/  scripts/  manifest.json
    releases/<id>.json      the manifest, and the archive's sha256: label, git commit, files with their sha256

The id is the first 12 hex digits of the sha256 over the files, what they are built for and the label. The same tree
gives the same bytes and the same id on any machine, so building twice publishes once.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sqlalchemy import Connection

from runner.rollout.wheels import Target, Wheels, closure, pins_of, requires
from runner.settings import SluiceError, UsageError
from runner.state import rollouts
from runner.storage import Storage

_TREES = ("systemd", "ansible")  # taken whole
_FILES = ("scripts/bootstrap", "scripts/install", "scripts/compile")
# What runs on a node, and the calendars of exchanges: a scheduler without them could not run a market's timetable.
EXTRAS = ("node", "calendars")
_IGNORED = {"__pycache__", ".DS_Store", ".ansible", ".git", "molecule"}
_EPOCH = 1_577_836_800  # 2020-01-01: the date of every file inside, so that the same content gives the same bytes


@dataclass(frozen=True)
class BuiltRelease:
    """A release on this machine's disk. `path` is the archive; its manifest is `<id>.json` beside it."""

    id: str
    path: Path
    manifest: dict[str, Any]

    @property
    def label(self) -> str:
        """What its builder called it."""
        return str(self.manifest["label"])


def archive_key(release: str) -> str:
    """Where a release's archive lies under the artifacts URL."""
    return f"releases/{release}.tar.gz"


def manifest_key(release: str) -> str:
    """Where a release's manifest lies under the artifacts URL."""
    return f"releases/{release}.json"


def build(
    root: Path,
    label: str = "",
    out: Path | None = None,
    *,
    targets: Sequence[Target] = (),
    extras: Sequence[str] = EXTRAS,
    cache: Path | None = None,
) -> BuiltRelease:
    """Build the release of the source tree at `root` into the directory `out` (default `<root>/dist/releases`).

    `targets` are the machines it brings wheels for, of our own package's `extras`; without any it serves process nodes
    alone, which run in the builder's own environment. Wheels are kept in `cache`, by default in the user's cache.
    Raises UsageError if `root` is not a source tree, SluiceError if a wheel cannot be built or fetched.
    """
    root = root.absolute()
    for needed in ("pyproject.toml", "requirements.lock"):
        if not (root / needed).is_file():
            raise UsageError(f"{root} has no {needed}", "run it in the source tree, or name one with --root")
    out = (out or root / "dist" / "releases").absolute()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".build-") as scratch:
        wheel = _wheel(root, Path(scratch))
        files = {f"wheel/{wheel.name}": wheel.read_bytes(), **_collect(root)}
        wheels = {target: _wheels(root, wheel, target, extras, cache) for target in sorted(set(targets))}
    files |= {f"wheels/{path.name}": path.read_bytes() for paths in wheels.values() for path in paths}
    names = {target: [path.name for path in paths] for target, paths in wheels.items()}
    manifest = describe(files, label, _git_commit(root), names)
    release = str(manifest["id"])
    path = out / f"{release}.tar.gz"
    executable = {name for name in files if name in _FILES or _is_executable(root / name)}
    archive = pack({**files, "manifest.json": _json(manifest)}, executable)
    manifest |= {"archive": {"sha256": hashlib.sha256(archive).hexdigest(), "size": len(archive)}}
    _write(path, archive)
    _write(out / f"{release}.json", _json(manifest))
    return BuiltRelease(release, path, manifest)


def describe(
    files: Mapping[str, bytes], label: str, commit: str, wheels: Mapping[Target, Sequence[str]] | None = None
) -> dict[str, Any]:
    """The manifest of these files, `wheels` by name for each target. Pure; the id does not depend on the commit."""
    hashes = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    targets = [{**vars(target), "wheels": sorted(names)} for target, names in sorted((wheels or {}).items())]
    identity = "".join(f"{digest}  {name}\n" for name, digest in hashes.items()) + f"label {label}\n"
    identity += "".join(f"target {json.dumps(target, sort_keys=True)}\n" for target in targets)
    release = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return {"id": release, "label": label, "git_commit": commit, "targets": targets, "files": hashes}


def pack(files: Mapping[str, bytes], executable: set[str]) -> bytes:
    """A .tar.gz with nothing in it that differs between two builds: no dates, owners or order of the disk."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            info.mtime = _EPOCH
            info.mode = 0o755 if name in executable else 0o644
            tar.addfile(info, io.BytesIO(files[name]))
    packed = io.BytesIO()
    # The least effort: nearly all of it is wheels, which are packed already.
    with gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=_EPOCH, compresslevel=1) as gz:
        gz.write(plain.getvalue())
    return packed.getvalue()


def publish(built: BuiltRelease, storage: Storage, connection: Connection, who: str) -> bool:
    """Upload a release unless it is there, and write it down; False if it was published before.

    The archive comes first and the row last: a release that is listed can be fetched.
    """
    url = storage.url_of(archive_key(built.id))
    if not storage.exists(archive_key(built.id)):
        storage.put(manifest_key(built.id), _json(built.manifest))
        storage.put(archive_key(built.id), built.path)
    return rollouts.add_release(
        connection,
        release=built.id,
        label=built.label,
        git_commit=str(built.manifest["git_commit"]),
        url=url,
        size=built.path.stat().st_size,
        who=who,
    )


def _wheel(root: Path, out: Path) -> Path:
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(_EPOCH), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, cwd=root, env=env, capture_output=True, text=True, check=False)
    wheels = sorted(out.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        hint = "pip install 'sluice[deploy]'" if "No module named hatchling" in said else "fix pyproject.toml"
        raise SluiceError(f"the wheel cannot be built: {said}", hint)
    return wheels[0]


def _wheels(root: Path, own: Path, target: Target, extras: Sequence[str], cache: Path | None) -> list[Path]:
    pins = pins_of((root / "requirements.lock").read_text(), target)
    kept = Wheels(cache or wheel_cache())
    return closure(requires(own), extras, pins, target, lambda wanted: kept.fetch(wanted, target))


def wheel_cache() -> Path:
    """Where fetched wheels are kept between builds: `$XDG_CACHE_HOME/sluice/wheels`, by default in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "sluice" / "wheels"


def _collect(root: Path) -> dict[str, bytes]:
    found = {name: (root / name).read_bytes() for name in _FILES if (root / name).is_file()}
    for tree in _TREES:
        for path in sorted((root / tree).rglob("*")):
            name = PurePosixPath(path.relative_to(root).as_posix())
            if path.is_file() and not _IGNORED & set(name.parts):
                found[str(name)] = path.read_bytes()
    return found


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _git_commit(root: Path) -> str:
    """The commit checked out, with `+` behind it if the tree differs from it; "" outside of git."""
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if head.returncode != 0:
            return ""
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)
