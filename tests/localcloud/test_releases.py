"""Releases on process nodes, where only signed ones are taken."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from runner.localcloud.releases import Releases
from runner.localcloud.state import LocalState
from runner.rollout.sign import SecretKey, UnverifiedError, sign

KEY, OTHER = SecretKey.generate(), SecretKey.generate()


def archive(text: str) -> bytes:
    wheel, out = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as z:
        z.writestr("who.py", text)
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo("wheel/sluice-0-py3-none-any.whl")
        info.size = len(wheel.getvalue())
        tar.addfile(info, io.BytesIO(wheel.getvalue()))
    return out.getvalue()


class Store(Releases):
    """The artifacts in memory."""

    def __init__(self, cache: Path) -> None:
        super().__init__(LocalState(aws_endpoint="http://127.0.0.1:1"), cache)
        self.objects: dict[str, bytes] = {}

    def put(self, release: str, content: bytes, key: SecretKey | None = KEY) -> None:
        told = {"id": release, "archive": {"sha256": hashlib.sha256(content).hexdigest()}}
        manifest = json.dumps(told).encode()
        self.objects |= {f"releases/{release}.tar.gz": content, f"releases/{release}.json": manifest}
        if key:
            self.objects[f"releases/{release}.json.minisig"] = sign(manifest, key, "c").encode()

    def _fetch(self, key: str) -> bytes | None:
        return self.objects.get(key)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_a_signed_release_is_installed(store: Store, tmp_path: Path) -> None:
    store.put("abc", archive("x = 1"))
    site = store.install("abc", tmp_path / "node", [KEY.public])
    assert site and (site / "who.py").read_text() == "x = 1"


def test_another_key_no_signature_and_another_archive_are_refused(store: Store, tmp_path: Path) -> None:
    store.put("abc", archive("x = 1"))
    for keys, reason in (([OTHER.public], "signed with key"), ([KEY.public], "not the one that was built")):
        if reason.startswith("not"):
            store.objects["releases/abc.tar.gz"] = archive("x = 2")
        with pytest.raises(UnverifiedError, match=f"release abc is refused: .*{reason}"):
            store.install("abc", tmp_path / "node", keys)
    store.put("def", archive("x = 1"), key=None)
    with pytest.raises(UnverifiedError, match="release def is refused: it is not signed"):
        store.install("def", tmp_path / "node", [KEY.public])
    assert not list((tmp_path / "node").glob("*"))


def test_what_was_taken_unsigned_is_not_trusted_later(store: Store, tmp_path: Path) -> None:
    # Given a release in the cache from a time when no key was asked for
    store.put("abc", archive("x = 1"), key=None)
    assert store.install("abc", tmp_path / "one")
    with pytest.raises(UnverifiedError, match="it is not signed"):
        store.install("abc", tmp_path / "two", [KEY.public])
