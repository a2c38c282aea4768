"""One store by URL: `file:///dir` or `s3://bucket/prefix`."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, S3Store

from runner.settings import SluiceError, UsageError

_CHUNK = 4 * 1024 * 1024  # bytes; how much of an object `stream` holds in memory at once


class MissingError(SluiceError):
    """There is no object under this key."""


class Stored(NamedTuple):
    """An object in the store. `size` in bytes."""

    key: str
    size: int
    modified: dt.datetime


class _Fork:
    # The store's I/O runs on background threads that a fork does not copy: a child of a process that has
    # used a store would wait for ever. It gets an error instead.
    used = False
    broken = False


def _after_fork() -> None:
    _Fork.broken = _Fork.used


os.register_at_fork(after_in_child=_after_fork)


class Storage:
    """Objects by key. Keys are relative, `/` between their parts, without `.` or `..`.

    Every method raises SluiceError naming the URL and the key: MissingError for an object that is not there,
    a hint for a missing bucket or missing rights. Objects appear whole or not at all.
    """

    def __init__(self, store: LocalStore | S3Store, url: str) -> None:
        self._store = store
        self.url = url
        self._confirmed = isinstance(store, LocalStore)  # the bucket is known to exist

    @classmethod
    def open(cls, url: str, *, region: str | None = None) -> Storage:
        """The store at `url`; nothing is read or written yet, but a local directory is made.

        S3 takes endpoint, region and credentials from the environment as every AWS tool does, else from the
        profile, else from the instance's role. Raises UsageError for a URL of another kind.
        """
        parts = urlsplit(url)
        if parts.scheme == "file" and parts.netloc in ("", "localhost") and len(parts.path) > 1:
            path = Path(unquote(parts.path))
            try:
                return cls(LocalStore(path, mkdir=True), url.rstrip("/"))
            except (OSError, BaseError, ValueError) as e:
                raise SluiceError(f"storage {url}: {_first_line(e)}", "is it a directory one may write to?") from None
        if parts.scheme == "s3" and parts.netloc:
            return cls(_s3(parts.netloc, parts.path.strip("/"), region), url.rstrip("/"))
        raise UsageError(f"storage {url!r} is neither file:///dir nor s3://bucket/prefix")

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def url_of(self, key: str) -> str:
        """The full URL of a key."""
        return f"{self.url}/{key}"

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object, or the content of a file, replacing what was there."""
        with self._doing("write", key):
            obstore.put(self._store, _key(key), data)

    def get(self, key: str) -> bytes:
        """The whole object."""
        with self._doing("read", key):
            return bytes(obstore.get(self._store, _key(key)).bytes())

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer at the end of the object, none after it."""
        with self._doing("read", key):
            size = obstore.head(self._store, _key(key))["size"]
            end = min(start + length, size)
            if start < 0 or length < 0:
                raise UsageError(f"storage {self.url}: no range {start}+{length} of {key}")
            return bytes(obstore.get_range(self._store, _key(key), start=start, end=end)) if start < end else b""

    def stream(self, key: str) -> Iterator[bytes]:
        """The object piece by piece, a few MiB at a time."""
        with self._doing("read", key):
            for chunk in obstore.get(self._store, _key(key)).stream(min_chunk_size=_CHUNK):
                yield bytes(chunk)

    def exists(self, key: str) -> bool:
        """Is there an object under this key?"""
        try:
            with self._doing("look for", key):
                obstore.head(self._store, _key(key))
        except MissingError:
            return False
        return True

    def list(self, prefix: str = "", *, after: str = "") -> list[Stored]:
        """Everything under the folder `prefix`, sorted by key; only keys greater than `after` where given."""
        with self._doing("list", prefix):
            pages = obstore.list(
                self._store,
                _key(prefix.rstrip("/")) if prefix else None,
                offset=after or None,
                chunk_size=1000,
            )
            return sorted(Stored(m["path"], m["size"], m["last_modified"]) for page in pages for m in page)

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""
        with contextlib.suppress(MissingError), self._doing("delete", key):
            obstore.delete(self._store, _key(key))

    def check(self) -> None:
        """Raise SluiceError unless the bucket exists and may be listed."""
        with self._doing("list", ""):
            for _ in obstore.list(self._store, chunk_size=1):
                break

    @contextlib.contextmanager
    def _doing(self, verb: str, key: str) -> Iterator[None]:
        if _Fork.broken:
            raise SluiceError(
                f"storage {self.url}: used before this process was forked; it cannot be used after",
                "open and use storage only in the child, or start the child with spawn",
            )
        _Fork.used = True
        what = f"storage {self.url}: cannot {verb} {key or 'it'}"
        try:
            yield
        except FileNotFoundError as e:
            if "NoSuchBucket" in str(e):
                raise self._no_bucket() from None
            if not self._confirmed:  # the answer to a HEAD does not say which of the two is missing
                self.check()
            raise MissingError(f"storage {self.url}: there is no {key}") from None
        except (PermissionDeniedError, UnauthenticatedError) as e:
            raise SluiceError(
                f"{what}: not allowed ({_code(e)})", "check the credentials and the bucket's policy"
            ) from None
        except (BaseError, OSError) as e:
            if "NoSuchBucket" in str(e):
                raise self._no_bucket() from None
            raise SluiceError(f"{what}: {_code(e) or _first_line(e)}") from None
        self._confirmed = True

    def _no_bucket(self) -> SluiceError:
        bucket = urlsplit(self.url).netloc
        return SluiceError(
            f"storage {self.url}: the bucket {bucket} does not exist",
            "the bucket is made by `deployctl infra apply`; check the environment, region and account",
        )


def _s3(bucket: str, prefix: str, region: str | None) -> S3Store:
    options: dict[str, Any] = {
        "retry_config": {"max_retries": 5, "retry_timeout": dt.timedelta(seconds=30)},
        "client_options": {
            "connect_timeout": "5s",
            # Plain HTTP only where an endpoint was asked for: never against AWS itself.
            "allow_http": os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", "")).startswith(
                "http://"
            ),
        },
    }
    region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        options["region"] = region
    if prefix:
        options["prefix"] = prefix
    if not os.environ.get("AWS_ACCESS_KEY_ID") and _has_profile():
        # Profiles and single sign-on: an operator's machine. A node has none and asks its instance's role.
        from obstore.auth.boto3 import Boto3CredentialProvider

        options["credential_provider"] = Boto3CredentialProvider()
    return S3Store(bucket, **options)


def _has_profile() -> bool:
    names = ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config")
    files = (Path(os.environ.get(variable, default)).expanduser() for variable, default in names)
    return bool(os.environ.get("AWS_PROFILE")) or any(f.exists() for f in files)


def _key(key: str) -> str:
    if not key or key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
        raise UsageError(f"storage key {key!r} must be relative, without empty parts, . or ..")
    return key


def _code(e: Exception) -> str:
    found = re.search(r"<Code>(\w+)</Code>", str(e))
    return found.group(1) if found else ""


def _first_line(e: Exception) -> str:
    return str(e).partition("\n")[0]
