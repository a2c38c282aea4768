"""Objects by key, on a directory and on S3 alike."""

import os
import select
import signal
from collections.abc import Callable
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
