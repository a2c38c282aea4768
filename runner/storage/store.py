"""One store by URL: `file:///dir` or `s3://bucket/prefix`."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import LocalStore, S3Store

from runner.settings import SluiceError, UsageError

if TYPE_CHECKING:
    from obstore import GetOptions

_CHUNK = 8 * 1024 * 1024  # bytes; how much of an object `stream` holds in memory at once
# A write holds about these many bytes times uploads in memory. S3 takes 10,000 parts: objects up to 156 GiB.
_PART = 16 * 1024 * 1024
_UPLOADS = 4
_COPY_MAX = 5 * 1024**3  # bytes; S3 copies no more than this in one request


class MissingError(SluiceError):
    """There is no object under this key."""


class Stored(NamedTuple):
    """An object in the store. `size` in bytes; `etag` changes with the content."""

    key: str
    size: int
    modified: dt.datetime
    etag: str = ""


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

    @classmethod
    def locate(cls, url: str, *, region: str | None = None) -> tuple[Storage, str]:
        """The store and the key of one object: `s3://bucket/some/key` or `file:///dir/name`. Raises UsageError.

        As everywhere with S3, a key is not percent-encoded in its URL; a file's path is.
        """
        store, _, key = url.rpartition("/")
        if url.startswith("s3://"):
            bucket, _, key = url.removeprefix("s3://").partition("/")
            store = f"s3://{bucket}"
        elif store == "file://":  # directly in /
            store = "file:///."
        if not key or not url.startswith(("s3://", "file://")):
            raise UsageError(f"{url!r} is neither file:///dir/name nor s3://bucket/key")
        return cls.open(store, region=region), key if store.startswith("s3://") else unquote(key)

    @property
    def raw(self) -> LocalStore | S3Store:
        """The store of obstore, for who asks it without waiting."""
        return self._store

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def url_of(self, key: str) -> str:
        """The full URL of a key."""
        return f"{self.url}/{key}"

    def put(self, key: str, data: bytes | Path | Iterable[bytes]) -> None:
        """Write an object, replacing what was there: bytes, the content of a file, or pieces as they come.

        Pieces are sent while the next ones are made, in bounded memory, whatever their number and size. What
        making them raises is raised here, and nothing is written.
        """
        if isinstance(data, bytes | Path):
            with self._doing("write", key):
                obstore.put(self._store, _key(key), data, chunk_size=_PART, max_concurrency=_UPLOADS)
            return
        # Not obstore.put(): that runs the iterator inside its own event loop, where reading from a store cannot work.
        with self.writer(key) as file:
            for piece in data:
                file.write(piece)

    @contextlib.contextmanager
    def writer(self, key: str) -> Iterator[BinaryIO]:
        """A file to write to, for code that wants one; the object appears when the block ends without an error."""
        with self._doing("write", key):
            file = obstore.open_writer(self._store, _key(key), buffer_size=_PART, max_concurrency=_UPLOADS)
            inner = file.__enter__()
        try:
            yield cast(BinaryIO, _Writing(self, key, inner))
        except BaseException as e:
            file.__exit__(type(e), e, e.__traceback__)
            raise
        with self._doing("write", key):
            file.__exit__(None, None, None)

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
        """The object piece by piece, a few MiB at a time, however slowly they are taken.

        Raises SluiceError if it is replaced meanwhile: pieces of two objects are never mixed.
        """
        # A request a piece: one for all of a big object would outlive its connection where the reader is slow.
        with self._doing("read", key):
            meta = obstore.head(self._store, _key(key))
        for start in range(0, meta["size"], _CHUNK):
            options: GetOptions = {"range": (start, min(start + _CHUNK, meta["size"])), "if_match": meta["e_tag"]}
            with self._doing("read", key):
                piece = bytes(obstore.get(self._store, _key(key), options=options).bytes())
            yield piece

    def reader(self, key: str) -> BinaryIO:
        """The object as a file to read from start to end, for code that wants one."""
        return as_file(self.stream(key))

    def head(self, key: str) -> Stored:
        """Size, time and etag of an object."""
        with self._doing("look for", key):
            return _stored(obstore.head(self._store, _key(key)))

    def copy(self, key: str, to: str, *, into: Storage | None = None) -> None:
        """Copy an object, within the store (S3 does it by itself) or into another one, in bounded memory."""
        if into is None and self.head(key).size <= _COPY_MAX:
            with self._doing("copy", key):
                obstore.copy(self._store, _key(key), _key(to))
        else:
            (into or self).put(to, self.stream(key))

    def exists(self, key: str) -> bool:
        """Is there an object under this key?"""
        try:
            self.head(key)
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
            return sorted(_stored(m) for page in pages for m in page)

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
        except PreconditionError:
            raise SluiceError(f"{what}: it was replaced meanwhile", "read it again") from None
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


def as_file(pieces: Iterator[bytes]) -> BinaryIO:
    """Pieces as a file to read from start to end."""
    return cast(BinaryIO, io.BufferedReader(_Reading(pieces), _CHUNK // 4))


class _Reading(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Writing(io.RawIOBase):
    def __init__(self, storage: Storage, key: str, file: Any) -> None:
        self._storage = storage
        self._key = key
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with self._storage._doing("write", self._key):
            self._file.write(data)
        return len(data)


def _stored(meta: Any) -> Stored:
    return Stored(meta["path"], meta["size"], meta["last_modified"], (meta["e_tag"] or "").strip('"'))


def _s3(bucket: str, prefix: str, region: str | None) -> S3Store:
    options: dict[str, Any] = {
        "retry_config": {"max_retries": 5, "retry_timeout": dt.timedelta(seconds=30)},
        "client_options": {
            "connect_timeout": "5s",
            "read_timeout": "60s",  # of silence
            "timeout": "10m",  # S3 puts the parts of a big upload together in minutes
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
    # A service under systemd may not even look into the home it is told to have.
    return bool(os.environ.get("AWS_PROFILE")) or any(os.access(f, os.R_OK) for f in files)


def _key(key: str) -> str:
    if not key or key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
        raise UsageError(f"storage key {key!r} must be relative, without empty parts, . or ..")
    return key


def _code(e: Exception) -> str:
    found = re.search(r"<Code>(\w+)</Code>", str(e))
    return found.group(1) if found else ""


def _first_line(e: Exception) -> str:
    return str(e).partition("\n")[0]
