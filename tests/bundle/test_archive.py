from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from runner.bundle.archive import unpack


def packed(*members: tarfile.TarInfo) -> tarfile.TarFile:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    buffer.seek(0)
    return tarfile.open(fileobj=buffer)


def a_file(name: str, mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = 3, mode
    return info


def a_link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_files_and_directories_arrive_without_owners_or_special_bits(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("empty")
    folder.type = tarfile.DIRTYPE
    with packed(a_file("a/b.py"), a_file("run", 0o4777), folder) as tar:
        unpack(tar, tmp_path)
    assert (tmp_path / "a/b.py").read_bytes() == b"xxx"
    assert (tmp_path / "a/b.py").stat().st_mode & 0o7777 == 0o644
    assert (tmp_path / "run").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "empty").is_dir()


@pytest.mark.parametrize(
    "bad",
    [
        a_file("../outside"),
        a_file("a/../../outside"),
        a_file("/etc/outside"),
        a_link("link", "/etc/passwd", tarfile.SYMTYPE),
        a_link("hard", "good", tarfile.LNKTYPE),
        a_link("device", "", tarfile.CHRTYPE),
    ],
    ids=lambda m: m.name,
)
def test_anything_else_is_refused_before_a_file_is_written(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with packed(a_file("good"), bad) as tar, pytest.raises(tarfile.TarError):
        unpack(tar, target)
    assert list(target.iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
