"""Objects by key, on a directory and on S3 alike."""

import csv
import io
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from runner.settings import SluiceError, UsageError
from runner.storage import MissingError, Storage


def test_what_was_put_is_there_until_it_is_deleted(storage: Storage) -> None:
    # Given an object
    assert not storage.exists("files/a.csv")
    storage.put("files/a.csv", b"0123456789")

    # Then it reads whole, in part, and in a stream
    assert storage.exists("files/a.csv")
    assert storage.get("files/a.csv") == b"0123456789"
    assert storage.get_range("files/a.csv", 2, 3) == b"234"
    assert storage.get_range("files/a.csv", 8, 100) == b"89"
    assert storage.get_range("files/a.csv", 10, 5) == b""
    assert b"".join(storage.stream("files/a.csv")) == b"0123456789"

    # When it is written again it is replaced, and when deleted it is gone, twice over
    storage.put("files/a.csv", b"new")
    assert storage.get("files/a.csv") == b"new"
    storage.delete("files/a.csv")
    storage.delete("files/a.csv")
    assert not storage.exists("files/a.csv")


def test_a_file_is_put_and_streamed_in_pieces(storage: Storage, tmp_path: Path) -> None:
    data = os.urandom(9_000_000)
    (tmp_path / "big").write_bytes(data)
    storage.put("big", tmp_path / "big")
    pieces = list(storage.stream("big"))
    assert len(pieces) > 1 and b"".join(pieces) == data


def test_list_is_by_folder_sorted_and_can_go_on_after_a_key(storage: Storage) -> None:
    for key in ("a/2", "a/1", "a/b/3", "ab/4"):
        storage.put(key, b"xyz")
    assert [(s.key, s.size) for s in storage.list("a")] == [("a/1", 3), ("a/2", 3), ("a/b/3", 3)]
    assert [s.key for s in storage.list("a/", after="a/1")] == ["a/2", "a/b/3"]
    assert len(storage.list()) == 4
    assert storage.list("none") == []
    assert storage.list("a")[0].modified.tzinfo is not None


@pytest.mark.parametrize("read", [Storage.get, lambda s, k: s.get_range(k, 0, 1), lambda s, k: list(s.stream(k))])
def test_a_missing_object_is_named(storage: Storage, read: Callable[[Storage, str], object]) -> None:
    with pytest.raises(MissingError, match=f"{storage.url}: there is no gone/x"):
        read(storage, "gone/x")


@pytest.mark.parametrize("key", ["", "/abs", "../up", "a//b", "a/./b"])
def test_keys_cannot_leave_the_store(storage: Storage, key: str) -> None:
    with pytest.raises(UsageError, match="must be relative"):
        storage.put(key, b"")


def test_stores_of_one_bucket_are_apart_by_prefix(aws: str) -> None:
    boto3.client("s3").create_bucket(
        Bucket="shared-bucket", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    Storage.open("s3://shared-bucket/one").put("k", b"1")
    assert not Storage.open("s3://shared-bucket/two").exists("k")
    assert Storage.open("s3://shared-bucket").get("one/k") == b"1"


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.put("k", b""),
        lambda s: s.get("k"),
        lambda s: s.exists("k"),
        lambda s: s.list("k"),
        lambda s: s.delete("k"),
        lambda s: s.check(),
    ],
    ids=["put", "get", "exists", "list", "delete", "check"],
)
def test_a_missing_bucket_is_named_with_what_to_do(aws: str, use: Callable[[Storage], object]) -> None:
    with pytest.raises(SluiceError, match="the bucket no-such-bucket does not exist") as e:
        use(Storage.open("s3://no-such-bucket/prefix"))
    assert "infra apply" in e.value.hint
    assert not isinstance(e.value, MissingError)


def test_an_endpoint_that_is_away_is_one_line(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(SluiceError, match=r"cannot read k: .*127\.0\.0\.1:9") as e:
        Storage.open("s3://some-bucket").get("k")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("url", ["", "/dir", "s3://", "file://host/dir", "file:///", "https://example.org/x"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="neither file:///dir nor s3://bucket"):
        Storage.open(url)


def test_a_directory_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SluiceError, match="storage file:///"):
        Storage.open(f"file://{tmp_path}/file/dir")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on, where other tests left threads
def test_after_a_fork_it_says_so_instead_of_hanging(tmp_path: Path) -> None:
    # Given a process that used a store
    storage = Storage.open(f"file://{tmp_path}")
    storage.put("a", b"1")
    # When its forked child uses one
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            storage.get("a")
            os.write(write, b"read it")
        except SluiceError as e:
            os.write(write, str(e).encode())
        finally:
            os._exit(0)
    os.close(write)
    # Then the child says so and ends
    try:
        assert select.select([read], [], [], 10)[0], "the child hangs"
        assert b"used before this process was forked" in os.read(read, 1000)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)


def test_pieces_are_written_as_they_come_and_appear_whole_or_not_at_all(storage: Storage) -> None:
    # Given pieces of more than one part of an upload
    pieces = [bytes([n]) * 9_000_000 for n in range(4)]

    def failing() -> Iterator[bytes]:
        yield from pieces
        raise FileNotFoundError("the source is gone")

    # When making them fails, the error is the source's own and nothing is there
    with pytest.raises(FileNotFoundError, match="the source is gone"):
        storage.put("big", failing())
    assert storage.list() == []

    # When it does not, the object is there; and a write that fails later leaves it as it was
    storage.put("big", iter(pieces))
    with pytest.raises(FileNotFoundError):
        storage.put("big", failing())
    head = storage.head("big")
    assert (head.key, head.size) == ("big", 36_000_000)
    assert b"".join(storage.stream("big")) == b"".join(pieces)
    storage.put("none", [])
    assert storage.get("none") == b""


def test_code_that_wants_a_file_gets_one(storage: Storage) -> None:
    # Given a table written through a file
    rows = [[str(n), "é" * (n % 50)] for n in range(50_000)]
    with storage.writer("table.csv") as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        csv.writer(text).writerows(rows)
        assert not storage.exists("table.csv")
    # Then it can be read through one
    with io.TextIOWrapper(storage.reader("table.csv"), "utf-8", newline="") as text:
        assert list(csv.reader(text)) == rows
    # And a block that fails writes nothing
    with pytest.raises(KeyError), storage.writer("other") as file:
        file.write(b"x" * 20_000_000)
        raise KeyError
    assert not storage.exists("other")


def test_copies_within_a_store_and_into_another(storage: Storage, tmp_path: Path) -> None:
    storage.put("a/1", os.urandom(5_000_000))
    other = Storage.open(f"file://{tmp_path}/other")
    storage.copy("a/1", "b/1")
    storage.copy("a/1", "c/1", into=other)
    assert storage.get("a/1") == storage.get("b/1") == other.get("c/1")
    with pytest.raises(MissingError, match="there is no gone"):
        storage.copy("gone", "b/1")
    with pytest.raises(MissingError, match="there is no gone"):
        storage.copy("gone", "c/1", into=other)
    assert other.exists("c/1")


def test_pieces_of_two_objects_are_never_mixed(storage: Storage) -> None:
    # Given a reader in the middle of an object that is then replaced
    storage.put("k", b"a" * 20_000_000)
    pieces = storage.stream("k")
    assert set(next(pieces)) == {ord("a")}
    storage.put("k", b"b" * 20_000_000)
    # Then it is told so
    with pytest.raises(SluiceError, match="cannot read k: it was replaced meanwhile"):
        list(pieces)
    # And of an empty object there are no pieces
    storage.put("k", b"")
    assert list(storage.stream("k")) == []


def test_an_etag_changes_with_the_content(storage: Storage) -> None:
    storage.put("k", b"one")
    first = storage.head("k")
    assert storage.list()[0] == first
    storage.put("k", b"other")
    assert storage.head("k").etag != first.etag and '"' not in first.etag
    with pytest.raises(MissingError):
        storage.head("gone")


def test_a_url_names_one_object(aws: str, tmp_path: Path) -> None:
    boto3.client("s3").create_bucket(Bucket="one-object", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    for url, store, key in (
        ("s3://one-object/a/b #?%20.csv", "s3://one-object", "a/b #?%20.csv"),
        (f"file://{tmp_path}/a%20b/c%20d.csv", f"file://{tmp_path}/a%20b", "c d.csv"),
    ):
        located, found = Storage.locate(url)
        assert (located.url, found) == (store, key)
        located.put(found, b"x")
    assert (tmp_path / "a b" / "c d.csv").read_bytes() == b"x"
    for wrong in ("s3://bucket", "s3://bucket/", "file:///dir/", "/dir/name", "http://host/x", ""):
        with pytest.raises(UsageError, match=r"neither file:///dir/name nor s3://bucket/key"):
            Storage.locate(wrong)


def test_memory_does_not_grow_with_the_object(tmp_path: Path) -> None:
    # Given a process that writes and copies 256 MiB and reads it back
    code = f"""
import resource
from runner.storage import Storage
a, b = Storage.open("file://{tmp_path}/a"), Storage.open("file://{tmp_path}/b")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
piece = bytes(1 << 20)
a.put("big", (piece for _ in range(256)))
a.copy("big", "big", into=b)
assert sum(map(len, b.stream("big"))) == 1 << 28
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Then it needs a small part of that: KiB
    assert int(done.stdout) < 230 * 1024
    shutil.rmtree(tmp_path / "a"), shutil.rmtree(tmp_path / "b")
