"""The image of container nodes: built once from a recipe, known by the recipe's hash, kept by the engine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from runner.localcloud import containers
from runner.localcloud.containers import Engine
from runner.localcloud.state import locked
from runner.settings import SluiceError

RECIPE = Path(__file__).with_name("image.sh")
PYTHON = "3.11"  # of Debian 12
_NAME = "localhost/sluice-node"


def tag() -> str:
    """The name of the image that the recipe makes."""
    return f"{_NAME}:{hashlib.sha256(RECIPE.read_bytes()).hexdigest()[:12]}"


def ensure(engine: Engine, say: Callable[[str], None] = lambda text: None) -> str:
    """Build the image unless the engine has it, and return its name. Two at once: the second waits.

    Raises SluiceError with the last line that the recipe said if it fails.
    """
    cache = containers.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    name = tag()
    with locked(cache / "image.lock"):
        if engine.run("image", "inspect", name, check=False).returncode == 0:
            return name
        if not shutil.which("debootstrap"):
            raise SluiceError("the image of container nodes cannot be built", "apt-get install debootstrap")
        say("building the image of the nodes, once: two minutes")
        with tempfile.TemporaryDirectory(dir=cache, prefix="image-") as scratch:
            _build(engine, Path(scratch), name, cache / "image.log")
        _forget_older(engine, name)
    return name


def _build(engine: Engine, scratch: Path, name: str, log: Path) -> None:
    root = scratch / "root"
    mirror = os.environ.get("SLUICE_DEBIAN_MIRROR", "")
    # What it mounts and starts ends with it, however it ends: nothing may ever be deleted through a mount of /proc.
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", str(RECIPE), str(root)]
    with log.open("wb") as out:
        argv += [mirror] if mirror else []
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False)
    if done.returncode != 0:
        said = (log.read_text(errors="replace").strip() or "nothing").splitlines()[-1]
        raise SluiceError(f"the image of container nodes cannot be built: {said}", f"see {log}")
    packed = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    with log.open("ab") as out:
        read = subprocess.run(
            [*engine.command, "import", "-", name], stdin=packed.stdout, stdout=out, stderr=out, check=False
        )
    if packed.stdout:
        packed.stdout.close()
    if packed.wait() != 0 or read.returncode != 0:
        raise SluiceError(f"{engine.name} does not take the image of container nodes", f"see {log}")


def _forget_older(engine: Engine, name: str) -> None:
    listed = engine.run("images", "--format", "{{.Repository}}:{{.Tag}}", check=False).stdout.split()
    for old in listed:
        if old.startswith(f"{_NAME}:") and old != name:
            engine.run("rmi", old, check=False)  # one that a container still uses stays
