"""Releases on process nodes: fetched from the artifacts once, unpacked and compiled once, linked into each node."""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import io
import os
import shutil
import tarfile
import threading
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from runner.bundle.archive import unpack as unpack_tar
from runner.localcloud.state import LocalState
from runner.rollout import published
from runner.rollout.release import archive_key, manifest_key, signature_key
from runner.rollout.sign import PublicKey
from runner.settings import SluiceError

_ASK_AGAIN_SECONDS = 0.3
_ABSENT = ("NoSuchBucket", "NoSuchKey", "404")


class Releases:
    """The releases of one local cloud.

    A node's own copy consists of hard links: six nodes take the room and the compile time of one, and still each
    runs the files of its own directory.
    """

    def __init__(self, state: LocalState, cache: Path) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._absent_until: dict[str, float] = {}
        self._url = urlsplit(state.artifacts_url)
        self._s3 = boto3.session.Session(
            aws_access_key_id="local", aws_secret_access_key="local", region_name=state.region
        ).client("s3", endpoint_url=state.aws_endpoint, config=Config(retries={"max_attempts": 1}))

    def install(self, release: str, target: Path, keys: Sequence[PublicKey] = ()) -> Path | None:
        """Put the release below target and return its directory of Python packages; None: not published yet.

        With `keys` only if one of them signed it. Raises SluiceError if it was not, if the id is none or the archive
        is broken.
        """
        if not release.isalnum():
            raise SluiceError(f"the tag Release says {release!r}, which is no release id")
        home = target / release
        if (home / "site").is_dir():
            return home / "site"
        with self._lock:
            kept = self._cache / (f"{release}.signed" if keys else release)  # the one says nothing of the other
            if not kept.is_dir():
                if time.monotonic() < self._absent_until.get(release, 0.0):
                    return None  # another node has just asked
                archive = self._fetch(archive_key(release))
                if archive is None:
                    self._absent_until[release] = time.monotonic() + _ASK_AGAIN_SECONDS
                    return None
                if keys:
                    self._verify(release, archive, keys)
                unpack(archive, kept)
        part = target / f".{release}.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(kept, part, copy_function=_link)
        part.rename(home)
        return home / "site"

    def _verify(self, release: str, archive: bytes, keys: Sequence[PublicKey]) -> None:
        signature = self._fetch(signature_key(release))
        if signature is None:
            raise published.unsigned(release)
        manifest = published.check(release, self._fetch(manifest_key(release)) or b"", signature, keys)
        published.check_archive(manifest, archive)

    def _fetch(self, key: str) -> bytes | None:
        key = "/".join(filter(None, (self._url.path.strip("/"), key)))
        try:
            return self._s3.get_object(Bucket=self._url.netloc, Key=key)["Body"].read()
        except ClientError as e:
            if e.response["Error"]["Code"] in _ABSENT:
                return None
            raise


def unpack(archive: bytes, target: Path) -> None:
    """Unpack a release archive, and its own wheels into `site`; whole or not at all. Raises SluiceError."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            unpack_tar(tar, part)
        wheels = sorted((part / "wheel").glob("*.whl"))
        if not wheels:
            raise SluiceError(f"release {target.name} holds no wheel/*.whl")
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as content:
                content.extractall(part / "site")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as e:
        digest = hashlib.sha256(archive).hexdigest()[:12]
        raise SluiceError(f"release {target.name} cannot be unpacked ({len(archive)} bytes, {digest}): {e}") from None
    compileall.compile_dir(part / "site", quiet=2, workers=1)
    part.rename(target)


def _link(source: str, target: str) -> str:
    with contextlib.suppress(OSError):
        os.link(source, target)
        return target
    return shutil.copy2(source, target)
