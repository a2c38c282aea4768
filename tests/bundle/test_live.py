"""A push on a fleet at work: real scheduler, real workers, nothing restarts and nothing is disturbed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from runner.bundle.environment import FOLDER
from runner.deployctl.main import run as deployctl
from runner.storage import Storage
from tests.bundle.wheelhouse import wheel
from tests.worker.conftest import Fleet

# Two tasks, of which the first waits for a file: a run that is under way while other code is pushed.
LONG = """
import os, pathlib, time
from runner.authoring import dag, task

HERE = "{version}"

@task
def first() -> dict:
    out = pathlib.Path(os.environ["OUT"])
    (out / "started").touch()
    while not (out / "go").exists():
        time.sleep(0.05)
    return {{"code": HERE, "pid": os.getpid()}}

@task
def second(before: dict) -> dict:
    return {{"code": HERE, "before": before["code"]}}

@dag
def long():
    second(first())

@task
def say() -> str:
    return HERE

@dag
def short():
    say()
"""

LIB = """
import subprocess

import tinylib
from runner.authoring import dag, task

@task
def version() -> list:
    return [tinylib.VERSION, subprocess.check_output("tinylib", text=True)]

@dag
def {name}():
    version()
"""


@pytest.fixture
def fleet(
    engine: Engine, database_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fleet]:
    fleet = Fleet(engine, database_url, broker_url, tmp_path)
    for name in ("SLUICE_DATABASE_URL", "SLUICE_ARTIFACTS_URL"):
        monkeypatch.setenv(name, fleet.environment[name])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield fleet
    fleet.close()


def scheduler(fleet: Fleet) -> subprocess.Popen[bytes]:
    environment = {**fleet.environment, "SLUICE_NODE_ID": "s1", "SLUICE_HOME": str(fleet.directory / "s1")}
    with (fleet.directory / "s1.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "runner.cli", "scheduler"], env=environment, stdout=output, stderr=output
        )
    fleet.processes.append(process)
    return process


def push(fleet: Fleet, version: str, capfd: pytest.CaptureFixture[str]) -> str:
    folder = fleet.directory / "pipelines"
    folder.mkdir(exist_ok=True)
    (folder / "pipeline.py").write_text(LONG.format(version=version))
    capfd.readouterr()
    assert deployctl(["dags", "push", str(folder), "--env", "dev", "--json"]) == 0
    return str(json.loads(capfd.readouterr().out)["version"])


def value(fleet: Fleet, run: int, task: str) -> object:
    return fleet.one("SELECT value FROM xcom WHERE run_id = :r AND task_id = :t", r=run, t=task)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_push_restarts_nothing_and_disturbs_nothing(fleet: Fleet, capfd: pytest.CaptureFixture[str]) -> None:
    # Given a scheduler and two workers, and a run of the first version whose first task is at work
    old = push(fleet, "one", capfd)
    services = [scheduler(fleet), fleet.worker("n1"), fleet.worker("n2")]
    for node in ("n1", "n2"):
        fleet.wait(lambda n=node: fleet.one("SELECT state FROM node WHERE node_id = :n", n=n) == "ready", 60)
        fleet.wait(lambda n=node: fleet.one("SELECT 1 FROM node_heartbeat WHERE node_id = :n", n=n), 60)
    long = fleet.run("long")
    fleet.wait(lambda: (fleet.directory / "out" / "started").exists(), 60)
    # When a second version is pushed
    pushed = time.monotonic()
    new = push(fleet, "two", capfd)
    # Then both nodes bring it in unasked
    for node in ("n1", "n2"):
        fleet.wait(lambda n=node: (fleet.directory / n / "bundles" / new).is_dir(), 60)
    print(f"push began → on both nodes: {time.monotonic() - pushed:.2f} s")
    # And a new run on each of them takes it at once
    runs = [fleet.run("short", queue=f"node.{node}") for node in ("n1", "n2")]
    for run in runs:
        fleet.wait(lambda r=run: fleet.state(r) == "success", 60)
        assert value(fleet, run, "say") == "two"
    # And the run that was under way keeps its own, also for the task that had not begun
    assert fleet.state(long) == "running"
    (fleet.directory / "out" / "go").touch()
    fleet.wait(lambda: fleet.state(long) == "success", 60)
    assert value(fleet, long, "second") == {"code": "one", "before": "one"}
    assert fleet.task(long, "first", "attempt") == 1
    # When it is rolled back, then new runs take the first version again
    assert deployctl(["dags", "rollback", "--env", "dev"]) == 0
    back = fleet.run("short")
    fleet.wait(lambda: fleet.state(back) == "success", 60)
    assert value(fleet, back, "say") == "one"
    assert fleet.one("SELECT bundle_version FROM dag_run WHERE id = :r", r=back) == old
    # And every service is the process it was
    assert [s.poll() for s in services] == [None, None, None]
    starts = "SELECT count(*) FROM event WHERE kind = 'node' AND detail LIKE 'registered%' AND node_id IN ('n1', 'n2')"
    assert fleet.one(starts) == 2


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_bundles_with_two_versions_of_one_package_on_one_worker(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two bundles that do not agree on a package, one with hashes, and a third that agrees with the second
    wheelhouse = tmp_path / "wheelhouse"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheelhouse))
    wheel(wheelhouse, "tinylib", "1.0", command=True)
    digest = hashlib.sha256(wheel(wheelhouse, "tinylib", "2.0", command=True).read_bytes()).hexdigest()
    second = f"tinylib==2.0 --hash=sha256:{digest}\n"
    for name, lock in (("one", "tinylib==1.0\n"), ("two", second), ("three", second)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "pipeline.py").write_text(LIB.format(name=name))
        (folder / "requirements.txt").write_text(lock)
        assert deployctl(["dags", "push", str(folder), "--env", "dev"]) == 0
    stored = Storage.open(fleet.environment["SLUICE_ARTIFACTS_URL"]).list("wheels")
    assert {s.key.rpartition("/")[2][:11] for s in stored} == {"tinylib-1.0", "tinylib-2.0"}
    # When one worker, without any index, runs all of them
    shutil.rmtree(wheelhouse)
    fleet.worker("n1")
    fleet.wait(lambda: fleet.one("SELECT state FROM node WHERE node_id = 'n1'") == "ready", 60)
    runs = {fleet.run(name): wanted for name, wanted in (("one", "1.0"), ("two", "2.0"), ("three", "2.0"))}
    # Then each task had its own, the module and the command, in two environments
    for run, wanted in runs.items():
        fleet.wait(lambda r=run: fleet.state(r) == "success", 60, dispatching=True)
        assert value(fleet, run, "version") == [wanted, f"tinylib {wanted}\n"]
    assert len([p for p in (fleet.directory / "n1" / "bundles" / FOLDER).iterdir() if p.is_dir()]) == 2


def test_a_bundle_that_was_changed_in_the_store_is_not_run(fleet: Fleet, capfd: pytest.CaptureFixture[str]) -> None:
    # Given a version whose archive is replaced by another's
    other = push(fleet, "evil", capfd)
    version = push(fleet, "good", capfd)
    store = fleet.directory / "artifacts" / "bundles"
    (store / f"{version}.tar.gz").write_bytes((store / f"{other}.tar.gz").read_bytes())
    # When a worker is to run it
    fleet.worker("n1")
    fleet.wait(lambda: fleet.one("SELECT state FROM node WHERE node_id = 'n1'") == "ready", 60)
    run = fleet.run("short")
    # Then the task fails and says why
    fleet.wait(lambda: fleet.state(run) == "failed", 60, dispatching=True)
    error = fleet.task(run, "say", "error")
    assert f"bundle {version} does not load on n1" in error and "holds other content than was published" in error
    assert value(fleet, run, "say") is None
