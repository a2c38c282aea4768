"""Podman with a storage of its own, and an image made of this machine's own shell: no registry is needed."""

import io
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Podman wants higher limits of open files and processes than a machine that is a container itself may give.
RUNTIME = """#!{python} -I
import json, os, sys
args = sys.argv[1:]
if "create" in args and "--bundle" in args:
    path = args[args.index("--bundle") + 1] + "/config.json"
    with open(path) as file:
        config = json.load(file)
    config["process"].pop("rlimits", None)
    with open(path, "w") as file:
        json.dump(config, file)
os.execvp("runc", ["runc", *args])
"""

PROGRAMS = ("sh", "cat", "sleep", "head", "tail", "id", "nproc")


@pytest.fixture(scope="session")
def podman() -> Iterator[list[str]]:
    """The command, with a storage of its own."""
    if shutil.which("podman") is None:
        pytest.fail("podman is not installed: apt-get install podman runc")
    home = Path(tempfile.mkdtemp(prefix="sluice-podman-"))
    podman = ["podman", "--root", f"{home}/root", "--runroot", f"{home}/run", "--storage-driver", "vfs"]
    podman += ["--cgroup-manager", "cgroupfs", "--events-backend", "file"]
    runtime = home / "runc"
    runtime.write_text(RUNTIME.format(python=sys.executable))
    runtime.chmod(0o755)
    podman += ["--runtime", str(runtime)]
    yield podman
    subprocess.run([*podman, "rm", "--all", "--force", "--time", "0"], capture_output=True)
    subprocess.run(["umount", f"{home}/root/vfs"], capture_output=True)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def docker_url(podman: list[str]) -> Iterator[str]:
    """The URL of its Docker-compatible API."""
    home = Path(tempfile.mkdtemp(prefix="sluice-podman-"))  # short: the path of a socket has 107 bytes
    url = f"unix://{home}/s"
    with (home / "log").open("wb") as log:
        # Where the kernel has ended something for its memory, Podman's monitor says so in a file of its own folder.
        service = subprocess.Popen([*podman, "system", "service", "--time=0", url], stdout=log, stderr=log, cwd=home)
    deadline = time.monotonic() + 60
    while not answers(home / "s"):
        assert service.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
        time.sleep(0.05)
    yield url
    service.terminate()
    service.wait()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def image(podman: list[str]) -> str:
    """A small image with a shell."""
    subprocess.run([*podman, "import", "-", "localhost/small:1"], input=root_filesystem(), check=True)
    return "localhost/small:1"


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(str(path))
        except OSError:
            return False
    return True


def root_filesystem() -> bytes:
    """A tar of some programs and the libraries they need."""
    files = {}
    for name in PROGRAMS:
        path = shutil.which(name)
        assert path, name
        files[f"bin/{name}"] = path
        needed = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
        files |= {found.lstrip("/"): found for found in re.findall(r"(/\S+) \(", needed)}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder in ("tmp", "proc", "sys", "dev", "etc"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(entry)
        for name, path in files.items():
            tar.add(Path(path).resolve(), arcname=name)
    return out.getvalue()
