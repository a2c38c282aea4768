"""Bring another release to this node, as root, while its services run: fetched, verified, unpacked, made ready.

Nothing that runs is touched: each release has a folder and a virtual environment of its own, and what starts next is
decided elsewhere. Done again it goes on where it was; half a release is never taken for one.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import structlog

from runner.bundle.archive import unpack
from runner.rollout import published
from runner.rollout.sign import trusted
from runner.settings import Settings, SluiceError
from runner.storage import Storage

log = structlog.get_logger("install")

OPT = Path("/opt/sluice")
UNITS = Path("/etc/systemd/system")
KEPT = 3  # releases beside the one that is active: to go back to


def run(settings: Settings, release: str) -> None:
    """Install one release. Raises SluiceError with what is wrong with it."""
    settings.require("artifacts_url")
    target = OPT / "releases" / release
    if not (target / "manifest.json").is_file():
        fetch(settings, release, target)
    install = [sys.executable, str(target / "scripts/install"), str(target)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()[-1]
        raise SluiceError(said.removeprefix("error: "))
    replace_units(target)
    prune(keep={release, (OPT / "current").resolve().name})
    log.info("release installed", release=release)


def fetch(settings: Settings, release: str, target: Path) -> None:
    """Download the archive, verify and unpack it; whole or not at all."""
    storage = Storage.open(settings.artifacts_url, region=settings.region)
    data = published.fetch(storage, release, trusted(settings.release_key))
    part = target.with_name(f".{release}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            unpack(tar, part)
        said = json.loads((part / "manifest.json").read_text())["id"]
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError) as e:
        raise SluiceError(f"release {release} cannot be unpacked: {type(e).__name__}: {e}") from None
    if said != release:
        raise SluiceError(f"the archive of release {release} holds {said}")
    part.rename(target)


def replace_units(release: Path) -> None:
    """The units that this node has, as the release brings them. What runs keeps on running under the new ones."""
    changed = False
    for unit in sorted((release / "systemd").glob("runner*")):
        there = UNITS / unit.name
        if there.is_file() and there.read_bytes() != unit.read_bytes():
            part = there.with_name(f".{unit.name}.part")
            shutil.copyfile(unit, part)
            part.chmod(0o644)
            part.replace(there)
            changed = True
    if changed:
        subprocess.run(["systemctl", "daemon-reload"], check=True)


def prune(keep: set[str]) -> None:
    """Remove releases that are neither kept nor running nor among the newest."""
    running = subprocess.run(
        ["systemctl", "list-units", "--plain", "--no-legend", "runner-worker@*"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = [p for p in (OPT / "releases").iterdir() if p.is_dir() and not p.name.startswith(".")]
    newest = sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)
    for old in newest[KEPT:]:
        if old.name not in keep and f"@{old.name}.service" not in running:
            shutil.rmtree(old, ignore_errors=True)
            log.info("release removed", release=old.name)
