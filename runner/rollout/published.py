"""Releases in an environment's artifacts: put there once, read only if they are what was built and signed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from runner.rollout.release import BuiltRelease, archive_key, manifest_key, signature_key, to_bytes
from runner.rollout.sign import PublicKey, UnverifiedError, verify
from runner.settings import SluiceError
from runner.state import rollouts
from runner.storage import MissingError, Storage


def publish(built: BuiltRelease, storage: Storage, connection: Connection, who: str) -> bool:
    """Upload a release unless it is there, and write it down; False if it was published before."""
    upload(built, storage)
    return _write_down(built.manifest, storage, connection, who)


def upload(built: BuiltRelease, storage: Storage) -> None:
    """Put a release there unless it is; one that is there without our signature gets it.

    The archive comes last: what can be fetched can be verified.
    """
    manifest, there = to_bytes(built.manifest), storage.exists(archive_key(built.id))
    same = there and _archive(storage, built.id) == built.manifest["archive"]
    if not there or built.signature:
        storage.put(manifest_key(built.id), manifest)
        if built.signature:
            storage.put(signature_key(built.id), built.signature.encode())
    if not there or (built.signature and not same):
        storage.put(archive_key(built.id), built.path)


def announce(release: str, storage: Storage, connection: Connection, who: str) -> bool:
    """Write down a release that was uploaded when there was no database yet; False if it is not there, or known."""
    manifest = json.loads(_get(storage, manifest_key(release)) or b"{}")
    return bool(manifest) and _write_down(manifest, storage, connection, who)


def _write_down(manifest: Mapping[str, Any], storage: Storage, connection: Connection, who: str) -> bool:
    return rollouts.add_release(
        connection,
        release=manifest["id"],
        label=manifest["label"],
        git_commit=manifest["git_commit"],
        url=storage.url_of(archive_key(manifest["id"])),
        size=manifest["archive"]["size"],
        who=who,
    )


def verified(storage: Storage, release: str, keys: Sequence[PublicKey]) -> dict[str, Any]:
    """A published release's manifest; with `keys`, only if one of them signed it. Its archive is not read.

    Empty for one that was published before there were manifests, where no key is asked for. Raises SluiceError if the
    release is not there, UnverifiedError if it is not what was signed.
    """
    if not storage.exists(archive_key(release)):
        raise SluiceError(
            f"the archive of release {release} is not in {storage.url}",
            "`deployctl release build` publishes it again",
        )
    content, signature = _get(storage, manifest_key(release)), b""
    if keys:
        signature = _get(storage, signature_key(release))
        if not signature:
            raise unsigned(release)
    return check(release, content, signature, keys) if content or keys else {}


def fetch(storage: Storage, release: str, keys: Sequence[PublicKey]) -> bytes:
    """A published release's archive, if it is the one that was built, and with `keys` signed. Raises as `verified`."""
    manifest = verified(storage, release, keys)
    archive = storage.get(archive_key(release))
    check_archive(manifest, archive)
    return archive


def unsigned(release: str) -> UnverifiedError:
    """What is said of a release without a signature, where one is asked for."""
    return UnverifiedError(
        f"release {release} is refused: it is not signed, and only signed ones are taken here (SLUICE_RELEASE_KEY)",
        "`deployctl release build --sign KEY` signs it",
    )


def check(release: str, content: bytes, signature: bytes, keys: Sequence[PublicKey]) -> dict[str, Any]:
    """The manifest in `content`, if it is this release's and, with `keys`, signed by one of them. Pure.

    Raises UnverifiedError: also for the manifest of another release, though it be signed well.
    """
    try:
        if keys:
            verify(content, signature.decode(errors="replace"), keys)
    except UnverifiedError as e:
        raise UnverifiedError(
            f"release {release} is refused: {e.message}", "`deployctl release build --sign KEY` signs it"
        ) from None
    manifest: dict[str, Any] = json.loads(content)
    if manifest.get("id") != release:
        raise UnverifiedError(f"release {release} is refused: its manifest is of release {manifest.get('id')}")
    return manifest


def check_archive(manifest: Mapping[str, Any], archive: bytes) -> None:
    """Raise UnverifiedError unless this is the archive that the manifest describes; one without says nothing."""
    digest = hashlib.sha256(archive).hexdigest()
    if manifest.get("archive", {"sha256": digest})["sha256"] != digest:
        raise UnverifiedError(
            f"release {manifest['id']} is refused: its archive ({len(archive)} bytes, {digest[:12]}…) is not the one "
            "that was built",
            "`deployctl release build` publishes it again",
        )


def _get(storage: Storage, key: str) -> bytes:
    try:
        return storage.get(key)
    except MissingError:
        return b""


def _archive(storage: Storage, release: str) -> Any:
    return json.loads(_get(storage, manifest_key(release)) or b"{}").get("archive")
