"""Releases in the artifacts: uploaded once, taken only as they were built and signed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine

from runner.rollout import published
from runner.rollout import release as releases
from runner.rollout.release import BuiltRelease, archive_key, manifest_key, signature_key
from runner.rollout.sign import SecretKey, UnverifiedError
from runner.settings import SluiceError, UsageError
from runner.state import rollouts
from runner.storage import Storage
from tests.rollout import tiny

KEY, OTHER = SecretKey.generate(), SecretKey.generate()
TRUSTED = [OTHER.public, KEY.public]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tree(tmp_path_factory.mktemp("source") / "tree")


@pytest.fixture(scope="module")
def unsigned(root: Path) -> BuiltRelease:
    return releases.build(root, "x", root / "unsigned")


@pytest.fixture(scope="module")
def signed(root: Path) -> BuiltRelease:
    return releases.build(root, "x", root / "signed", key=KEY)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(f"file://{tmp_path}/artifacts")


def put(built: BuiltRelease, storage: Storage, engine: Engine, who: str = "me") -> bool:
    with engine.begin() as c:
        return published.publish(built, storage, c, who)


def test_publishing_twice_uploads_once(unsigned: BuiltRelease, storage: Storage, engine: Engine) -> None:
    assert put(unsigned, storage, engine)
    before = {o.key: o.modified for o in storage.list()}
    assert not put(unsigned, storage, engine, "you")
    assert {o.key: o.modified for o in storage.list()} == before
    with engine.connect() as c:
        (row,) = rollouts.releases(c)
        assert rollouts.find_release(c, "newest").id == unsigned.id
        with pytest.raises(UsageError, match="no release 'abc'"):
            rollouts.find_release(c, "abc")
    assert (row.id, row.label, row.created_by) == (unsigned.id, "x", "me")
    assert storage.get(archive_key(unsigned.id)) == unsigned.path.read_bytes()


def test_a_signature_may_come_later_and_the_archive_stays(
    unsigned: BuiltRelease, signed: BuiltRelease, storage: Storage, engine: Engine
) -> None:
    assert signed.id == unsigned.id
    put(unsigned, storage, engine)
    before = storage.head(archive_key(signed.id)).modified
    with pytest.raises(UnverifiedError, match=f"release {signed.id} is refused: it is not signed"):
        published.fetch(storage, signed.id, TRUSTED)
    put(signed, storage, engine)
    assert published.fetch(storage, signed.id, TRUSTED) == signed.path.read_bytes()
    assert storage.head(archive_key(signed.id)).modified == before
    assert published.verified(storage, signed.id, [])["id"] == signed.id


def test_an_archive_that_is_not_ours_is_replaced_before_we_answer_for_it(
    signed: BuiltRelease, storage: Storage, engine: Engine
) -> None:
    # Given somebody else's archive and manifest under our id
    storage.put(archive_key(signed.id), b"evil")
    storage.put(
        manifest_key(signed.id), json.dumps({**signed.manifest, "archive": {"sha256": "evil", "size": 4}}).encode()
    )
    put(signed, storage, engine)
    assert published.fetch(storage, signed.id, TRUSTED) == signed.path.read_bytes()


def test_a_key_that_is_not_trusted_is_refused(signed: BuiltRelease, storage: Storage, engine: Engine) -> None:
    put(signed, storage, engine)
    with pytest.raises(UnverifiedError, match=rf"refused: it is signed with key {KEY.public.name}, trusted is"):
        published.verified(storage, signed.id, [OTHER.public])


def test_what_was_changed_after_signing_is_refused(signed: BuiltRelease, storage: Storage, engine: Engine) -> None:
    put(signed, storage, engine)
    manifest = storage.get(manifest_key(signed.id))
    # an archive that is not the signed one, with and without keys
    storage.put(archive_key(signed.id), b"evil")
    for keys in (TRUSTED, []):
        with pytest.raises(UnverifiedError, match=r"its archive \(4 bytes, .*\) is not the one that was built"):
            published.fetch(storage, signed.id, keys)
    # a manifest that says it is
    storage.put(manifest_key(signed.id), manifest.replace(b'"label": "x"', b'"label": "y"'))
    with pytest.raises(UnverifiedError, match="its signature is not good"):
        published.verified(storage, signed.id, TRUSTED)


def test_a_signed_release_cannot_pass_for_another(signed: BuiltRelease, storage: Storage) -> None:
    # Given an old release, well signed, under a new one's id
    storage.put(archive_key("abc"), signed.path)
    storage.put(manifest_key("abc"), releases.to_bytes(signed.manifest))
    storage.put(signature_key("abc"), signed.signature.encode())
    with pytest.raises(UnverifiedError, match=f"release abc is refused: its manifest is of release {signed.id}"):
        published.verified(storage, "abc", TRUSTED)


def test_one_without_a_manifest_is_taken_only_where_no_key_is_asked_for(storage: Storage) -> None:
    storage.put(archive_key("abc"), b"old")
    assert published.fetch(storage, "abc", []) == b"old"
    with pytest.raises(UnverifiedError, match="it is not signed"):
        published.fetch(storage, "abc", TRUSTED)
    with pytest.raises(SluiceError, match="the archive of release xyz is not in file://"):
        published.verified(storage, "xyz", [])


def test_two_releases_compared() -> None:
    def manifest(files: dict[str, str], label: str = "", **more: object) -> dict[str, object]:
        return {"files": files, "label": label, **more}

    old = manifest({"wheel/sluice-1-py3.whl": "1", "wheels/Boto_3-1-py3.whl": "b", "wheels/gone-1-x.whl": "g"})
    new = manifest(
        {"wheel/sluice-1-py3.whl": "2", "wheels/boto_3-2-py3.whl": "B", "systemd/a.service": "s"},
        "l",
        targets=[{"python": "3.11", "platform": "linux_x86_64"}],
    )
    assert releases.compare(old, new) == [
        ("boto-3", "1", "2"),
        ("gone", "1", ""),
        ("systemd/a.service", "", "s"),
        ("wheel/sluice-1-py3.whl", "1", "2"),
        ("label", "", "l"),
        ("built for", "process nodes only", "Python 3.11 on linux_x86_64"),
    ]
    assert releases.compare(new, new) == []
