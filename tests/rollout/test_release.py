"""Releases: the same tree gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from sqlalchemy import Engine

from runner.rollout import release as releases
from runner.settings import SluiceError, UsageError
from runner.state import rollouts
from runner.storage import Storage

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "sluice"
version = "1.2.3"
requires-python = ">=3.11"
[tool.hatch.build.targets.wheel]
packages = ["runner"]
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, content in {
        "pyproject.toml": PROJECT,
        "requirements.lock": "boto3==1\n",
        "runner/__init__.py": "",
        "systemd/runner-agent.service": "[Unit]\n",
        "ansible/site.yml": "[]\n",
        "ansible/__pycache__/x.pyc": "no",
        "scripts/bootstrap": "#!/bin/sh\n",
        "scripts/other": "not in a release",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "scripts/bootstrap").chmod(0o700)
    return root


def test_a_release_holds_what_a_node_runs(tree: Path) -> None:
    built = releases.build(tree, "first")
    with tarfile.open(built.path) as tar:
        members = {m.name: m for m in tar.getmembers()}
        content = {n: tar.extractfile(m).read() for n, m in members.items()}  # type: ignore[union-attr]
    assert sorted(members) == [
        "ansible/site.yml",
        "manifest.json",
        "scripts/bootstrap",
        "systemd/runner-agent.service",
        "wheel/sluice-1.2.3-py3-none-any.whl",
    ]
    assert members["scripts/bootstrap"].mode == 0o755 and members["ansible/site.yml"].mode == 0o644
    manifest = json.loads(content["manifest.json"])
    assert manifest["id"] == built.id == built.path.name.removesuffix(".tar.gz")
    assert manifest["label"] == "first"
    assert manifest["files"] == {n: hashlib.sha256(c).hexdigest() for n, c in content.items() if n != "manifest.json"}
    beside = json.loads(built.path.with_name(f"{built.id}.json").read_text())
    archive = beside.pop("archive")
    assert beside == manifest and archive["sha256"] == hashlib.sha256(built.path.read_bytes()).hexdigest()


def test_the_same_tree_elsewhere_and_later_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    first = releases.build(tree, "x")
    copy = shutil.copytree(tree, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("dist"))
    for path in copy.rglob("*"):
        path.touch()
    second = releases.build(copy, "x")
    assert second.id == first.id
    assert second.path.read_bytes() == first.path.read_bytes()


def test_content_and_label_make_the_identity(tree: Path) -> None:
    first = releases.build(tree)
    assert releases.build(tree, "other").id != first.id
    (tree / "runner/__init__.py").write_text("x = 1\n")
    assert releases.build(tree).id != first.id


def test_what_is_no_source_tree_is_refused(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(UsageError, match=r"no pyproject\.toml"):
        releases.build(tmp_path)
    (tree / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(SluiceError, match="the wheel cannot be built"):
        releases.build(tree)


def test_publishing_twice_uploads_once(tree: Path, tmp_path: Path, engine: Engine) -> None:
    built, storage = releases.build(tree, "x"), Storage.open(f"file://{tmp_path}/artifacts")
    with engine.begin() as c:
        assert releases.publish(built, storage, c, "me")
    written = (tmp_path / "artifacts" / releases.archive_key(built.id)).stat().st_mtime_ns
    with engine.begin() as c:
        assert not releases.publish(built, storage, c, "you")
        (row,) = rollouts.releases(c)
        assert rollouts.find_release(c, "newest").id == built.id
        with pytest.raises(UsageError, match="no release 'abc'"):
            rollouts.find_release(c, "abc")
    assert (tmp_path / "artifacts" / releases.archive_key(built.id)).stat().st_mtime_ns == written
    assert (row.id, row.label, row.created_by) == (built.id, "x", "me")
    assert storage.get(releases.archive_key(built.id)) == built.path.read_bytes()


def test_this_source_tree_builds(tmp_path: Path) -> None:
    built = releases.build(Path(__file__).parents[2], out=tmp_path)
    assert "scripts/bootstrap" in built.manifest["files"]
