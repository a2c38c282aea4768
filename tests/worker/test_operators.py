"""Operators in a worker's child: what they started ends with the attempt, however that ends."""

from __future__ import annotations

import datetime as dt
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner.authoring import Context
from runner.worker.children import Child, ChildDied, Children

# A warm parent that was closed leaves its socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

PIPELINE = """
from runner.authoring import dag, task
from runner.authoring.operators import BashOperator

@task
def who():
    return "{{ ann }}"

@dag
def d():
    hello = BashOperator("hello", command="echo at {{ logical_date | ds }}; echo $WHO", env={"WHO": who()},
                         return_last_line=True)
    BashOperator("long", command="trap 'echo told; exit 1' TERM; echo $$ > $OUT; while true; do sleep 0.1; done",
                 env={"OUT": "{{ params.out }}"})
"""


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "d.py").write_text(PIPELINE)
    children = Children(lambda _version: folder, tmp_path / "bundles.log")
    yield children
    children.close()
    del children
    gc.collect()


def request(tmp_path: Path, task_id: str, lease: float = 60.0, **inputs: Any) -> dict[str, Any]:
    now = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    context = Context(dag_id="d", run_id="1", task_id=task_id, logical_date=now, params={"out": f"{tmp_path}/pid"})
    return {"context": context.to_json(), "inputs": inputs, "log": str(tmp_path / "log"), "lease": lease}


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_command_runs_and_its_output_is_the_log(children: Children, tmp_path: Path) -> None:
    with children.lend("v1") as child:
        answer = child.run(request(tmp_path, "hello", who="{{ ann }}"), None)
    assert (answer["result"], answer["value"]) == ("success", '"{{ ann }}"')
    assert (tmp_path / "log").read_text() == "at 2026-03-01\n{{ ann }}\n"


@pytest.mark.parametrize("how", ["timeout", "lease", "kill"])
def test_an_attempt_that_is_ended_takes_its_command_with_it(children: Children, tmp_path: Path, how: str) -> None:
    # Given a command under way
    def end(child: Child) -> None:
        wait_for((tmp_path / "pid").exists, "the command does not start")
        if how == "timeout":  # what the worker sends then
            os.killpg(child.pid, signal.SIGTERM)
        elif how == "lease":
            child.renew(0.01)
        else:
            os.kill(child.pid, signal.SIGKILL)

    ended = ""
    try:
        with children.lend("v1") as child:
            thread = threading.Thread(target=end, args=(child,))
            thread.start()
            try:
                # When its attempt is ended
                ended = child.run(request(tmp_path, "long"), None)["result"]
            finally:
                thread.join()
    except ChildDied as e:
        assert e.signal == signal.SIGKILL
        ended = "killed"
    # Then the child says so, or died of that, and the command is gone; it was told where there was time
    assert ended == ("terminated" if how == "timeout" else "killed")
    wait_for(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())), "the command lives on")
    assert ("told" in (tmp_path / "log").read_text()) == (how == "timeout")
