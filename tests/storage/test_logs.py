"""Logs grow by parts and can be followed while they grow."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.settings import SluiceError
from runner.storage import LogWriter, Storage, log_prefix, read_log

PREFIX = log_prefix("dag", 7, "load", 2)


def test_a_log_is_followed_while_it_is_written(storage: Storage) -> None:
    # Given a reader that asks before anything is there
    log = LogWriter(storage, PREFIX)
    assert read_log(storage, PREFIX) == ("", 0)

    # When parts come, it gets each once
    log.append(b"one\n")
    text, at = read_log(storage, PREFIX)
    assert (text, at) == ("one\n", 1)
    log.append(b"two\n")
    log.append(b"three\n")
    assert read_log(storage, PREFIX, at) == ("two\nthree\n", 3)
    assert read_log(storage, PREFIX, 3) == ("", 3)

    # Then the whole is there from the start, one object per append
    assert read_log(storage, PREFIX)[0] == "one\ntwo\nthree\n"
    assert [s.key for s in storage.list("logs")] == [f"logs/dag/7/load/2/00000{n}.log" for n in range(3)]


def test_attempts_do_not_mix(storage: Storage) -> None:
    LogWriter(storage, log_prefix("dag", 7, "load", 1)).append(b"first")
    LogWriter(storage, log_prefix("dag", 7, "load", 10)).append(b"tenth")
    assert read_log(storage, log_prefix("dag", 7, "load", 1)) == ("first", 1)


def test_a_part_that_is_not_visible_yet_is_waited_for(storage: Storage) -> None:
    log = LogWriter(storage, PREFIX)
    for line in (b"a", b"b", b"c"):
        log.append(line)
    storage.delete(f"{PREFIX}/000001.log")
    assert read_log(storage, PREFIX) == ("a", 1)


def test_a_long_log_comes_in_bounded_pieces(storage: Storage) -> None:
    log = LogWriter(storage, PREFIX)
    for _ in range(5):
        log.append(b"x" * 100)
    text, at = read_log(storage, PREFIX, limit=150)
    assert (len(text), at) == (200, 2)


def test_what_could_not_be_stored_goes_out_with_the_next_part(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogWriter(storage, PREFIX)
    with monkeypatch.context() as m:
        m.setattr(storage, "put", lambda *_: (_ for _ in ()).throw(SluiceError("away")))
        with pytest.raises(SluiceError):
            log.append(b"one ")
    log.append(b"two")
    assert read_log(storage, PREFIX) == ("one two", 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.text(max_size=30), st.lists(st.integers(0, 120), max_size=6))
def test_text_survives_being_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, text: str, cuts: list[int]) -> None:
    data = text.encode(errors="replace")
    storage = Storage.open(f"file://{tmp_path_factory.mktemp('cut')}")
    log = LogWriter(storage, "logs")
    bounds = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    for start, end in itertools.pairwise(bounds):
        log.append(data[start:end])
        seen, _ = read_log(storage, "logs")
        assert data.decode().startswith(seen)  # every part is text by itself
    log.close()
    assert read_log(storage, "logs")[0] == data.decode()


def test_a_reader_never_sees_half_a_character(storage: Storage) -> None:
    log = LogWriter(storage, PREFIX)
    seen = []
    for byte in "aé漢😀\n".encode():
        log.append(bytes([byte]))
        seen.append(read_log(storage, PREFIX)[0])
    assert list(dict.fromkeys(seen)) == ["a", "aé", "aé漢", "aé漢😀", "aé漢😀\n"]


def test_bytes_that_are_no_text_are_kept(storage: Storage) -> None:
    log = LogWriter(storage, PREFIX)
    log.append(b"ok \xff\xfe ok \x80\x80\x80\x80\x80")
    log.close()
    assert b"".join(storage.get(s.key) for s in storage.list(PREFIX)) == b"ok \xff\xfe ok \x80\x80\x80\x80\x80"
    assert read_log(storage, PREFIX)[0].startswith("ok ��")
