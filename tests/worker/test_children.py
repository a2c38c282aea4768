from __future__ import annotations

import datetime as dt
import socket
from pathlib import Path
from typing import Any

import pytest

from runner.authoring import Context
from runner.worker.children import Children

PIPELINE = """
import time
from runner.authoring import dag, task

@task
def nap():
    time.sleep(0.3)
    return 7

@dag
def d():
    nap()
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "d.py").write_text(PIPELINE)
    return folder


def request(tmp_path: Path) -> dict[str, Any]:
    now = dt.datetime.now(dt.UTC)
    context = Context(dag_id="d", run_id="1", task_id="nap", logical_date=now)
    return {"context": context.to_json(), "inputs": {}, "log": str(tmp_path / "log"), "lease": 30.0}


def test_a_child_forked_while_sockets_have_a_default_timeout_works(bundle: Path, tmp_path: Path) -> None:
    # Given a process whose new sockets time out, as Celery makes it while it shuts down
    children = Children(lambda _version: bundle, tmp_path / "bundles.log")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.1)
    try:
        # When a task starts in just that time, and takes longer than the timeout
        with children.lend("v1") as child:
            answer = child.run(request(tmp_path), None)
    finally:
        socket.setdefaulttimeout(before)
        children.close()
    # Then it runs to its end
    assert (answer["result"], answer["value"]) == ("success", "7")
