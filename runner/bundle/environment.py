"""The Python environment of a bundle with packages of its own: its wheels over everything the runner itself has.

One directory for one set of wheels, made once on a node without any package index. Bundles with different versions
of one package each have their own and run side by side.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

from runner.bundle.cache import exclusive, hold, prune, used
from runner.bundle.wheels import Manifest, Wheel, manifest_of
from runner.settings import SluiceError

FOLDER = ".environments"  # in the cache of bundles, hidden from what prunes those
WHOLE = "wheels.json"  # written last: an environment without it is half made
INSTALL_SECONDS = 600.0


def interpreter(bundle: Path) -> str:
    """The Python that runs this bundle of the cache: this process's own, unless it has packages of its own."""
    manifest = manifest_of(bundle)
    return sys.executable if manifest is None else str(python_of(directory_of(manifest, bundle.parent / FOLDER)))


def directory_of(manifest: Manifest, environments: Path) -> Path:
    """Where the environment of these wheels is, or would be."""
    # Another release or another Python must not find an environment that was laid over this one.
    about = [manifest.to_bytes(), sys.version.encode(), sys.base_prefix.encode(), *map(str.encode, _own_packages())]
    return environments / hashlib.sha256(b"\0".join(about)).hexdigest()[:16]


def python_of(environment: Path) -> Path:
    """The interpreter of an environment."""
    return environment / "bin" / "python"


def is_whole(environment: Path) -> bool:
    """Whether it is there and complete."""
    return (environment / WHOLE).is_file()


def ensure(manifest: Manifest, environments: Path, get: Callable[[Wheel], bytes], *, keep: int = 8) -> Path:
    """The environment of these wheels, made if it is not there; `get` brings a wheel's content.

    Of the others the `keep` - 1 used last stay, and all in use. Raises SluiceError for a wheel that is not what the
    manifest says, and for wheels that do not fit this Python or this machine.
    """
    target = directory_of(manifest, environments)
    if not is_whole(target):
        environments.mkdir(parents=True, exist_ok=True)
        with exclusive(target):
            if not is_whole(target):
                # Made in its place and not moved there: its scripts name their interpreter by its path.
                shutil.rmtree(target, ignore_errors=True)
                _make(manifest, target, get)
    used(target)
    prune(target, keep)
    return target


def enter() -> None:
    """Called in a process of a bundle: if it runs in an environment, hold that, and find its commands first."""
    environment = Path(sys.prefix)
    if is_whole(environment):
        hold(environment)
        scripts = str(environment / "bin")
        path = os.environ.get("PATH", os.defpath).split(os.pathsep)
        if scripts not in path:
            os.environ["PATH"] = os.pathsep.join([scripts, *path])
        os.environ["VIRTUAL_ENV"] = str(environment)


def _make(manifest: Manifest, target: Path, get: Callable[[Wheel], bytes]) -> None:
    import venv

    venv.create(target, symlinks=True)
    with tempfile.TemporaryDirectory(prefix=".wheels-", dir=target) as temporary:
        wheels = Path(temporary)
        for wheel in manifest.wheels:
            data = get(wheel)
            if hashlib.sha256(data).hexdigest() != wheel.sha256:
                raise SluiceError(
                    f"wheel {wheel.key} is damaged: its sha256 is not the one in its name", "push the bundle again"
                )
            (wheels / wheel.file).write_bytes(data)
        if manifest.wheels:
            _install(manifest, target, wheels)
    # Written after the install, for which what the runner has does not count; read at every start of this Python.
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(target)}))
    lines = [f"import site; site.addsitedir({path!r})\n" for path in _own_packages()]
    (site / "runner.pth").write_text("".join(lines))
    part = target / f"{WHOLE}.part"
    part.write_bytes(manifest.to_bytes())
    part.rename(target / WHOLE)


def _install(manifest: Manifest, target: Path, wheels: Path) -> None:
    # By name and version, not by file: with wheels for several machines pip takes the one for this.
    wanted: dict[str, list[str]] = {}
    for wheel in manifest.wheels:
        wanted.setdefault(f"{wheel.name}=={wheel.version}", []).append(f"--hash=sha256:{wheel.sha256}")
    file = wheels / "requirements.txt"
    file.write_text("".join(f"{name} {' '.join(hashes)}\n" for name, hashes in wanted.items()))
    done = pip(
        *("--isolated", "--python", str(python_of(target)), "install", "--no-index", "--no-deps", "--no-cache-dir"),
        *("--find-links", str(wheels), "--require-hashes", "-r", str(file), "--no-warn-script-location"),
        *("--ignore-installed", "--root-user-action", "ignore"),
    )
    if done.returncode:
        raise SluiceError(
            f"the packages of the bundle do not fit this machine (Python {sys.version_info[0]}.{sys.version_info[1]}, "
            f"{os.uname().machine}): {last_error(done.stdout)}",
            "push again for it: `deployctl dags push --arch`",
        )


def pip(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run pip, what it prints in `stdout`. Raises SluiceError if it is not there or does not end."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q", *words]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SluiceError(f"pip did not end within {INSTALL_SECONDS:g} s", "is the package index reachable?") from None
    if "No module named pip" in done.stdout:
        raise SluiceError(f"{sys.executable} has no pip, which a bundle with requirements needs", "pip install pip")
    return done


def last_error(printed: str) -> str:
    """What pip says is wrong, in one line."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip failed and said nothing"])[-1]


def _own_packages() -> list[str]:
    """Where this process's packages are: the runner itself, and what it needs."""
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
