"""Releases: the same tree gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from runner.rollout import release as releases
from runner.settings import SluiceError, UsageError
from tests.rollout import tiny


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tiny.tree(tmp_path / "tree")


def test_a_release_holds_what_a_node_runs(tree: Path) -> None:
    built = releases.build(tree, "first")
    with tarfile.open(built.path) as tar:
        members = {m.name: m for m in tar.getmembers()}
        content = {n: tar.extractfile(m).read() for n, m in members.items()}  # type: ignore[union-attr]
    assert sorted(members) == [
        "ansible/site.yml",
        "manifest.json",
        "scripts/bootstrap",
        "scripts/install",
        "systemd/runner-agent.service",
        "wheel/sluice-1.2.3-py3-none-any.whl",
    ]
    assert members["scripts/bootstrap"].mode == 0o755 and members["ansible/site.yml"].mode == 0o644
    manifest = json.loads(content["manifest.json"])
    assert manifest["id"] == built.id == built.path.name.removesuffix(".tar.gz")
    assert manifest["label"] == "first"
    assert manifest["files"] == {n: hashlib.sha256(c).hexdigest() for n, c in content.items() if n != "manifest.json"}
    beside = json.loads(built.path.with_name(f"{built.id}.json").read_text())
    archive, _ = beside.pop("archive"), beside.pop("git_commit")
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
    (tree / "systemd/runner-agent.service").chmod(0o755)
    executable = releases.build(tree)
    (tree / "runner/__init__.py").write_text("x = 1\n")
    assert len({first.id, executable.id, releases.build(tree).id}) == 3


def test_what_is_no_source_tree_is_refused(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(UsageError, match=r"no pyproject\.toml"):
        releases.build(tmp_path)
    (tree / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(SluiceError, match="the wheel cannot be built"):
        releases.build(tree)


def test_this_source_tree_builds(tmp_path: Path) -> None:
    built = releases.build(Path(__file__).parents[2], out=tmp_path)
    assert "scripts/bootstrap" in built.manifest["files"]
