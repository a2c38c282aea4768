"""Who looks after a sensor, for how long, and what many of them cost."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest
from sqlalchemy import text

from runner.authoring import DAG
from runner.authoring.sensors import DeltaSensor, FileSensor, S3KeySensor
from runner.scheduler.sense.answers import Answers, Waiting
from runner.scheduler.sense.file import File
from runner.scheduler.sense.loop import Sensing, owner
from tests.scheduler.sense.conftest import DATE, Waits, until

SOON = dt.timedelta(seconds=0.5)


def test_a_timeout_fails_or_skips_and_says_what_hindered(waits: Waits) -> None:
    with DAG("d") as d:
        FileSensor("fails", path="/nowhere/x", timeout=dt.timedelta(seconds=1), poke_interval=SOON)
        FileSensor("skips", path="/nowhere/x", timeout=dt.timedelta(seconds=1), poke_interval=SOON, soft_fail=True)
        DeltaSensor("waits", delta=dt.timedelta(days=9999))
    waits.push(d)
    waits.run()
    waits.sense()
    row = waits.over("fails")
    assert (row.state, row.error) == ("failed", "waited 0:00:01 in vain")
    assert waits.over("skips").state == "skipped"
    assert waits.task("waits").state == "deferred"


def test_cleared_while_it_waited_it_waits_anew(waits: Waits) -> None:
    with DAG("d") as d:
        FileSensor("wait", path="/nowhere/x", timeout=dt.timedelta(seconds=2), poke_interval=SOON)
    waits.push(d)
    waits.run()
    loop = waits.sense()
    until(lambda: loop.waiting)
    with waits.engine.begin() as c:
        c.execute(text("UPDATE task_instance SET started_at = now() + interval '1 hour'"))
    (known,) = loop.waiting.values()
    until(lambda: known.since > time.time() + 1800)
    assert waits.task("wait").state == "deferred"


def test_marked_by_hand_it_is_forgotten(waits: Waits) -> None:
    from runner.state import transitions

    with DAG("d") as d:
        FileSensor("wait", path="/nowhere/x", poke_interval=SOON)
    waits.push(d)
    run = waits.run()
    loop = waits.sense()
    until(lambda: loop.waiting)
    with waits.engine.begin() as c:
        transitions.mark(c, run, ["wait"], "success", by="test")
    until(lambda: not loop.waiting)
    assert waits.task("wait").state == "success"


def folders(tmp_path: Path, n: int) -> DAG:
    with DAG("d") as d:
        for i in range(n):
            (tmp_path / str(i)).mkdir()
            FileSensor(f"s{i}", path=f"{tmp_path}/{i}/x", poke_interval=SOON)
    return d


class Watched(File):
    """Notes which groups it was asked about."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    async def look(self, waiting: Sequence[Waiting], now: float) -> Answers:
        self.asked[waiting[0].group] += 1
        return await super().look(waiting, now)


def watched(loop: Sensing) -> Watched:
    kind = loop._kinds["file"] = Watched()
    return kind


def test_two_schedulers_share_the_sensors_and_one_takes_over(waits: Waits, tmp_path: Path) -> None:
    # Given two schedulers and sensors that wait in 20 folders
    waits.push(folders(tmp_path, 20))
    waits.run()
    for name in ("s1", "s2"):
        waits.heartbeat(name)
    loops = [Sensing(waits.engine, name, fresh_seconds=30) for name in ("s1", "s2")]
    kinds = [watched(loop) for loop in loops]
    for loop in loops:
        loop.start()
        waits.loops.append(loop)
    # Then each folder is looked at by one of them, and both have some
    until(lambda: len(kinds[0].asked | kinds[1].asked) == 20 and min((kinds[0].asked + kinds[1].asked).values()) > 2)
    assert not set(kinds[0].asked) & set(kinds[1].asked)
    assert kinds[0].asked and kinds[1].asked
    # When one dies without a word, and is not heard of any more
    loops[1].stop()
    with waits.engine.begin() as c:
        c.execute(text("UPDATE node_heartbeat SET at = at - interval '1 hour' WHERE node_id = 's2'"))
    # Then the other one finds what was the dead one's
    for i in range(20):
        (tmp_path / str(i) / "x").touch()
    until(lambda: waits.count("success") == 20)


def test_a_scheduler_that_starts_again_finds_what_came_meanwhile(waits: Waits, tmp_path: Path) -> None:
    waits.push(folders(tmp_path, 3))
    waits.run()
    first = waits.sense()
    until(lambda: len(first.waiting) == 3)
    first.stop()
    (tmp_path / "1" / "x").touch()
    waits.sense()
    assert waits.over("s1").state == "success"
    assert waits.count("deferred") == 2


def test_a_database_that_is_away_loses_no_answer(waits: Waits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a scheduler whose first two attempts to write fail as they do while a database fails over
    from sqlalchemy.exc import OperationalError

    waits.push(folders(tmp_path, 1))
    (tmp_path / "0" / "x").touch()
    waits.run()
    real, failures = Sensing._write, [1, 1]

    def write(self: Sensing, *what: Any) -> None:
        if failures:
            failures.pop()
            raise OperationalError("UPDATE", {}, Exception("server closed the connection"))
        real(self, *what)

    monkeypatch.setattr(Sensing, "_write", write)
    waits.sense()
    assert waits.over("s0").state == "success"
    assert not failures


def test_the_owner_of_a_group_changes_only_where_it_must() -> None:
    groups = [f"g{i}" for i in range(300)]
    three = {g: owner(g, {"a", "b", "c"}) for g in groups}
    assert all(70 < n < 130 for n in Counter(three.values()).values())
    two = {g: owner(g, {"a", "c"}) for g in groups}
    assert all(two[g] == three[g] for g in groups if three[g] != "b")


@pytest.mark.slow
def test_ten_thousand_keys_of_a_folder_are_one_request_a_look(waits: Waits, aws: str) -> None:
    # Given 10,000 sensors that wait for as many keys of one folder
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="crowd", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    with DAG("d") as d:
        for i in range(1000):
            S3KeySensor(
                f"s{i}", url=f"s3://crowd/in/{{{{ params.day }}}}/{i:05}.csv", poke_interval=dt.timedelta(seconds=2)
            )
    waits.push(d)
    for day in range(10):
        waits.run(date=DATE + dt.timedelta(days=day), params={"day": f"2026-01-{day // 10:02}"})
    requests = count_requests()
    loop = waits.sense()
    until(lambda: len(loop.waiting) == 10_000)
    # When they are looked at for a while, and nothing is there
    requests.clear()
    began = time.monotonic()
    busy = thread_cpu(loop)
    until(lambda: len(requests) >= 4)
    share = (thread_cpu(loop) - busy) / (time.monotonic() - began)
    print(f"10,000 sensors, a look every 2 s: {share:.1%} of a core in the loop's thread")
    # Then all of them cost one listing a look
    assert share < 0.8
    assert {path for path, _ in requests} == {"/crowd"}
    assert all("list-type=2" in query for _, query in requests)
    # And a key that comes is found by the ten that wait for it, and by no other
    began = time.monotonic()
    s3.put_object(Bucket="crowd", Key="in/2026-01-00/00500.csv", Body=b"")
    until(lambda: waits.count("success") == 10)
    print(f"found after {time.monotonic() - began:.2f} s")
    assert waits.count("deferred") == 9990


def count_requests() -> list[tuple[str, str]]:
    """Every request that moto's server of this process gets from now on."""
    from moto.moto_server import werkzeug_app

    seen: list[tuple[str, str]] = []
    dispatcher = werkzeug_app.DomainDispatcherApplication
    original = dispatcher.__call__

    def call(self: Any, environ: dict[str, Any], start_response: Any) -> Any:
        seen.append((environ["PATH_INFO"], environ["QUERY_STRING"]))
        return original(self, environ, start_response)

    if original.__name__ != "call":
        dispatcher.__call__ = call  # type: ignore[method-assign]
    return seen


def thread_cpu(thread: threading.Thread) -> float:
    """Seconds of CPU a thread has used (proc(5): task/TID/stat, fields 14 and 15)."""
    fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
