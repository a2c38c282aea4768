"""`scripts/install` on a node: from the release's own wheels, with no package index and no network."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from runner.rollout import release as releases
from runner.rollout.wheels import Target
from tests.rollout import tiny

HERE = Target(f"3.{sys.version_info[1]}", f"linux_{platform.machine()}")
TOOL = {
    "tool-1.dist-info/entry_points.txt": "[console_scripts]\nSay-It = tool:Speaker.say [extra]\n[other]\nx = y\n",
    "tool.py": "class Speaker:\n    @staticmethod\n    def say():\n        print('said')\n        return 3\n",
    "tool-1.data/scripts/old-style": "#!python\nimport sys, tool; print(sys.prefix)\n",
    "tool-1.data/data/share/tool/readme": "read me",
    "tool-1.data/purelib/late.py": "",
}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release as user data leaves it: unpacked."""
    names = {}
    for name, content in (tiny.wheel("alpha"), tiny.wheel("tool", files=TOOL)):
        names[f"wheels/{name}"] = content
    own, content = tiny.wheel(
        "sluice",
        files={
            "runner/__init__.py": tiny.MAIN,
            "sluice-1.dist-info/entry_points.txt": "[console_scripts]\nrunner = runner:main\n",
        },
    )
    files = {f"wheel/{own}": content, **names, "scripts/install": (tiny.ROOT / "scripts/install").read_bytes()}
    manifest = releases.describe(files, "", {HERE: [n.removeprefix("wheels/") for n in names]})
    root = tmp_path / "releases" / manifest["id"]
    for name, body in {**files, "manifest.json": releases.to_bytes(manifest)}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(body)
    (root / "scripts/install").chmod(0o755)
    return root


def install(release: Path, *prefix: str, **env: str) -> tuple[int, str]:
    """Exit status, and what it said."""
    argv = [*prefix, sys.executable, str(release / "scripts/install")]
    environ = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **env}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def output(*argv: str | Path) -> tuple[int, str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip()


def test_every_part_of_a_wheel_goes_where_it_belongs(release: Path) -> None:
    assert install(release) == (0, "")
    venv = release / "venv"
    assert output(venv / "bin/runner") == (0, "alpha 1")
    assert output(venv / "bin/Say-It") == (3, "said")
    assert output(venv / "bin/old-style") == (0, str(venv))
    assert (venv / "share/tool/readme").read_text() == "read me"
    assert output(venv / "bin/python", "-c", "import late, importlib.metadata as m; print(m.version('tool'))") == (
        0,
        "1",
    )
    assert (venv / "bin/runner").stat().st_mode & 0o777 == 0o755


def test_a_second_time_changes_nothing(release: Path) -> None:
    install(release)
    before = (release / "venv/bin/runner").stat()
    assert install(release) == (0, "")
    assert (release / "venv/bin/runner").stat() == before


def test_one_that_was_interrupted_is_done_anew(release: Path) -> None:
    install(release)
    (release / "venv/.complete").unlink()
    (release / "venv/bin/stale").touch()
    assert install(release) == (0, "")
    assert not (release / "venv/bin/stale").exists() and output(release / "venv/bin/runner")[0] == 0


def test_others_may_read_it_whatever_the_umask(release: Path) -> None:
    before = os.umask(0o077)
    try:
        install(release)
    finally:
        os.umask(before)
    assert all(p.stat().st_mode & 0o004 for p in (release / "venv").rglob("*"))


def change(release: Path, **values: Any) -> None:
    manifest = json.loads((release / "manifest.json").read_text())
    (release / "manifest.json").write_text(json.dumps({**manifest, **values}))


def test_a_damaged_release_is_refused_before_anything_of_it_is_there(release: Path) -> None:
    wheel = next((release / "wheels").glob("alpha*"))
    wheel.write_bytes(wheel.read_bytes()[:-1])
    code, said = install(release)
    assert (
        code == 1
        and said == f"error: release {release}: damaged: wheels/{wheel.name} does not have the sha256 of the manifest\n"
    )
    assert not (release / "venv").exists()


def test_a_release_for_other_machines_is_refused(release: Path) -> None:
    change(release, targets=[{"python": "3.99", "platform": HERE.platform, "wheels": []}])
    code, said = install(release)
    assert code == 1 and f"built for Python 3.99 on {HERE.platform}; this machine is" in said
    change(release, targets=[])
    assert "built with --no-wheels" in install(release)[1]


def test_the_python_it_was_built_for_takes_over(release: Path, tmp_path: Path) -> None:
    # Given a release for a Python that is here under its own name only
    change(release, targets=[{"python": "3.99", "platform": HERE.platform, "wheels": []}])
    other = tmp_path / "bin/python3.99"
    other.parent.mkdir()
    other.write_text('#!/bin/sh\necho "3.99 runs $1"\n')
    other.chmod(0o755)
    code, said = install(release, PATH=f"{other.parent}:{os.environ['PATH']}")
    assert (code, said) == (0, f"3.99 runs {release / 'scripts/install'}\n")


def test_a_wheel_cannot_write_outside(release: Path) -> None:
    name, content = tiny.wheel("alpha", files={"alpha-1.data/data/../../../evil": "x"})
    (release / "wheels" / name).write_bytes(content)
    manifest = json.loads((release / "manifest.json").read_text())
    change(release, files={**manifest["files"], f"wheels/{name}": hashlib.sha256(content).hexdigest()})
    code, said = install(release)
    assert code == 1 and "which is outside of it" in said and not (release / "venv/.complete").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_this_tree_built_and_installed_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheels come from the cache of the builder; the first time ever, from the index."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    built = releases.build(tiny.ROOT, out=tmp_path, targets=[HERE], extras=["node"])
    home = tmp_path / "opt" / built.id
    home.mkdir(parents=True)
    with tarfile.open(built.path) as tar:
        tar.extractall(home, filter="data")
    # Without a network where the kernel lets us, else with no index that could answer
    alone = ("unshare", "-n") if shutil.which("unshare") and output("unshare", "-n", "true")[0] == 0 else ()
    assert install(home, *alone, PIP_NO_INDEX="1", UV_OFFLINE="1") == (0, "")
    code, said = output(*alone, home / "venv/bin/runner", "--version")
    assert (code, said.split()[0]) == (0, "runner")
    assert "[core " in output(*alone, home / "venv/bin/ansible-playbook", "--version")[1]
    # Nothing is missing that a service would import
    services = "import flower.app, " + ", ".join(f"runner.{s}.main" for s in ("agent", "worker", "scheduler", "web"))
    assert output(*alone, home / "venv/bin/python", "-c", services)[0] == 0
