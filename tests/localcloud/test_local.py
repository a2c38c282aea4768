"""`deployctl local` by its parts: real daemons, an instance that becomes a node, and nothing left behind."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest

from runner.deployctl import local_view, main
from runner.deployctl.background import Background
from runner.deployctl.local_cloud import LocalCloud
from runner.localcloud import state
from runner.settings import SluiceError
from runner.telemetry.alive import birth


@pytest.fixture
def cloud(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCloud]:
    # What a cloud puts into this process's environment is taken out again.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    cloud = LocalCloud(home / "cloud")
    monkeypatch.setenv("SLUICE_LOCAL_DIR", str(cloud.directory))
    yield cloud
    cloud.down()


def pids(cloud: LocalCloud) -> dict[str, int]:
    return {d.name: d.pid for d in cloud.daemons()}


def test_the_parts_start_once_serve_and_are_all_gone_afterwards(
    cloud: LocalCloud, eventually: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    # Given nothing; when the parts are started
    assert not cloud.started()
    cloud.start_engines()
    cloud.start_aws()
    sleeper = f"{sys.executable} -c 'import time; time.sleep(600)'"
    cloud.start_machines(agent_command=sleeper)
    # Then all run, and starting them again changes nothing
    assert cloud.started()
    before, endpoints = pids(cloud), cloud.state
    cloud.start_engines()
    cloud.start_aws()
    cloud.start_machines()
    assert pids(cloud) == before
    # And database, broker and AWS answer under the environment that every process gets
    environ = cloud.environ()
    cloud.migrate()
    with psycopg.connect(environ["SLUICE_DATABASE_URL"]) as connection:
        assert connection.execute("SELECT count(*) FROM node").fetchone() == (0,)
    psycopg.connect(environ["SLUICE_CONN_WAREHOUSE"]).close()
    cloud.bootstrap()
    s3 = boto3.client("s3", region_name="us-east-1")
    assert [b["Name"] for b in s3.list_buckets()["Buckets"]] == [endpoints.state_bucket]
    s3.close()
    # When a second command comes in between, it is refused with one line
    with state.locked(cloud.directory / ".up.lock"), pytest.raises(SluiceError, match="another command is bringing"):
        LocalCloud(cloud.directory).up()
    # And the status says what runs
    assert main.run(["local", "status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["up"] is True
    assert {d["name"]: d["pid"] for d in told["daemons"]} == before
    assert told["endpoints"]["aws_endpoint"] == endpoints.aws_endpoint
    # When it is taken down, no process and no file is left
    cloud.down()
    assert not any(birth(pid) for pid in before.values())
    assert not cloud.directory.exists()
    assert main.run(["local", "status"]) == 1
    assert "run `deployctl local up`" in capsys.readouterr().err


def test_down_removes_only_what_is_its_own(cloud: LocalCloud) -> None:
    # Given a state directory in which somebody keeps other things
    cloud.directory.mkdir()
    (cloud.directory / "thesis.txt").write_text("years of work")
    state.save(state.LocalState(), cloud.directory)
    cloud.down()
    assert [p.name for p in cloud.directory.iterdir()] == ["thesis.txt"]


def test_an_aws_that_ended_has_forgotten_its_cloud(cloud: LocalCloud) -> None:
    # Given a cloud whose AWS daemon died
    state.update(cloud.directory, aws_endpoint="http://127.0.0.1:1")
    assert cloud.forgotten()
    # And one that has never had any has nothing to forget
    state.save(state.LocalState(), cloud.directory)
    assert not cloud.forgotten()


def test_the_first_release_stays_the_first_when_the_tree_changes(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an interrupted bring-up that had built its release
    archive = cloud.directory / "releases" / "aaaaaaaaaaaa.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"")
    archive.with_name("aaaaaaaaaaaa.json").write_text('{"label": ""}')
    state.save(state.LocalState(release="aaaaaaaaaaaa"), cloud.directory)
    # When the next one asks for it, it is that one and none is built
    monkeypatch.setattr(LocalCloud, "release", lambda self: pytest.fail("built again"))
    assert cloud.first_release().id == "aaaaaaaaaaaa"


def test_nodes_that_do_not_come_are_named_with_the_reason(cloud: LocalCloud) -> None:
    machine = cloud.directory / "nodes" / "i-1"
    (machine / "log").mkdir(parents=True)
    (machine / "console.log").write_text("2026-01-01T00:00:00.000Z [    0.10] waiting: the tag Release is empty\n")
    error = cloud._missing(["i-1"], 0, 1)
    assert error.message == "0 of 1 nodes are up; i-1: waiting: the tag Release is empty"
    # A service that cannot start says more than the console
    (machine / "log" / "worker.log").write_text("error: no broker\nhint: start it\n")
    assert cloud._missing(["i-1"], 0, 1).message == "0 of 1 nodes are up; i-1: error: no broker"


def test_work_in_the_background_gives_its_result_or_its_error() -> None:
    gate = threading.Event()
    slow = Background(lambda: gate.wait(5) and 7)
    assert not slow.done
    gate.set()
    assert slow.wait(5) == 7
    with pytest.raises(ZeroDivisionError):
        Background(lambda: 1 / 0).wait(5)


def test_without_a_terminal_each_step_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with local_view.Display() as display:
        display(local_view.Step("nodes", "waiting"))
        display(local_view.Step("nodes", "1 of 6 nodes are up"))
        display(local_view.Step("nodes", "6 nodes are up", done=True, seconds=4.2))
    assert capsys.readouterr().err.splitlines() == [
        "… nodes            waiting",
        "✓ nodes            6 nodes are up (4 s)",
    ]


def test_status_and_down_where_there_is_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLUICE_LOCAL_DIR", str(home / "nowhere"))
    assert main.run(["local", "status"]) == 1
    assert capsys.readouterr().err.startswith(
        f"error: no local cloud in {home}/nowhere\nhint: run `deployctl local up`"
    )
    assert main.run(["local", "down"]) == 0


def test_a_state_file_that_cannot_be_read_is_one_clear_line(home: Path) -> None:
    (home / "local.json").write_text("{")
    with pytest.raises(SluiceError, match=r"local\.json cannot be read"):
        state.load(home)
