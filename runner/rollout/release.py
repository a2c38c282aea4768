"""Releases: a content-addressed archive of everything a node runs.

    <id>.tar.gz         wheel/ (ours)  wheels/ (what it needs)  systemd/  ansible/  scripts/  manifest.json
    <id>.json           the manifest, with the archive's sha256 and the commit it was built from
    <id>.json.minisig   who answers for it

The id is the first 12 hex digits of the sha256 over the files, what they are built for and the label. The same tree
gives the same archive and the same id on any machine, so building twice publishes once.
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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.utils import canonicalize_name

from runner.rollout.sign import SecretKey, sign
from runner.rollout.wheels import Target, Wheels, closure, pins_of, requires
from runner.settings import SluiceError, UsageError

_TREES = ("systemd", "ansible")  # taken whole
_FILES = ("scripts/bootstrap", "scripts/install", "scripts/compile")
# What runs on a node, and the calendars of exchanges: a scheduler without them could not run a market's timetable.
EXTRAS = ("node", "calendars")
_IGNORED = {"__pycache__", ".DS_Store", ".ansible", ".git", "molecule"}
_EPOCH = 1_577_836_800  # 2020-01-01: the date of every file inside, so that the same content gives the same bytes


@dataclass(frozen=True)
class BuiltRelease:
    """A release on this machine's disk. `path` is the archive; its manifest is `<id>.json` beside it, and signed."""

    id: str
    path: Path
    manifest: dict[str, Any]
    signature: str = ""

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


def signature_key(release: str) -> str:
    """Where the signature of a release's manifest lies under the artifacts URL, if it has one."""
    return f"releases/{release}.json.minisig"


def build(
    root: Path,
    label: str = "",
    out: Path | None = None,
    *,
    targets: Sequence[Target] = (),
    extras: Sequence[str] = EXTRAS,
    cache: Path | None = None,
    key: SecretKey | None = None,
) -> BuiltRelease:
    """Build the release of the source tree at `root` into the directory `out` (default `<root>/dist/releases`).

    `targets` are the machines it brings wheels for, of our own package's `extras`; without any it serves process nodes
    alone, which run in the builder's own environment. Wheels are kept in `cache`, by default in the user's cache.
    `key` signs it.
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
    executable = {name for name in files if name in _FILES or _is_executable(root / name)}
    manifest = describe(files, label, names, executable)
    release = str(manifest["id"])
    archive = pack({**files, "manifest.json": to_bytes(manifest)}, executable)
    digest = hashlib.sha256(archive).hexdigest()
    manifest |= {"archive": {"sha256": digest, "size": len(archive)}, "git_commit": _git_commit(root)}
    signature = sign(to_bytes(manifest), key, f"sluice release {release}") if key else ""
    path = out / f"{release}.tar.gz"
    _write(path, archive)
    _write(out / f"{release}.json", to_bytes(manifest))
    if signature:
        _write(out / f"{release}.json.minisig", signature.encode())
    return BuiltRelease(release, path, manifest, signature)


def describe(
    files: Mapping[str, bytes],
    label: str,
    wheels: Mapping[Target, Sequence[str]] | None = None,
    executable: Collection[str] = (),
) -> dict[str, Any]:
    """The manifest of these files, `wheels` by name for each target. Pure; everything in it makes the id."""
    manifest = {
        "label": label,
        "targets": [{**vars(target), "wheels": sorted(names)} for target, names in sorted((wheels or {}).items())],
        "files": {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)},
        "executable": sorted(executable),
    }
    return {"id": hashlib.sha256(to_bytes(manifest)).hexdigest()[:12], **manifest}


def packages(manifest: Mapping[str, Any]) -> dict[str, set[str]]:
    """The versions of every package whose wheel a release brings, its own included. Pure."""
    found: dict[str, set[str]] = {}
    for name in manifest["files"]:
        if name.endswith(".whl"):
            package, version = PurePosixPath(name).name.split("-")[:2]
            found.setdefault(canonicalize_name(package), set()).add(version)
    return found


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What differs between two manifests: (what, before, after), packages first. Pure."""
    a, b = packages(old), packages(new)
    rows = [
        (name, " ".join(sorted(a.get(name, ()))), " ".join(sorted(b.get(name, ())))) for name in sorted(a.keys() | b)
    ]
    rows = [row for row in rows if row[1] != row[2]]
    named = {row[0] for row in rows}
    for name in sorted(old["files"].keys() | new["files"]):
        before, after = old["files"].get(name, ""), new["files"].get(name, "")
        package = canonicalize_name(PurePosixPath(name).name.split("-")[0]) if name.endswith(".whl") else ""
        if before != after and package not in named:
            rows.append((name, before[:12], after[:12]))
    for what, of in (("label", lambda m: m["label"]), ("built for", targets_of)):
        if of(old) != of(new):
            rows.append((what, of(old), of(new)))
    return rows


def targets_of(manifest: Mapping[str, Any]) -> str:
    """What a release was built for, in words."""
    targets = [f"Python {t['python']} on {t['platform']}" for t in manifest.get("targets", ())]
    return ", ".join(targets) or "process nodes only"


def pack(files: Mapping[str, bytes], executable: Collection[str]) -> bytes:
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


def to_bytes(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as it is written and signed."""
    return (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)
