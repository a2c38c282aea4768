"""`runner dev`: the way an author works, from the start to Ctrl-C."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

GOOD = """
from runner.authoring import dag, task

@task
def say() -> None:
    print("hello from {version}")

@dag()
def greet() -> None:
    say()
"""


class Author:
    """Somebody with a folder of pipelines and two terminals."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.pipelines = home / "pipelines"
        self.pipelines.mkdir()
        self.screen = home / "screen"
        self.environment = {**os.environ, "SLUICE_DEV_DIR": str(home / "dev"), "COLUMNS": "200"}

    def write(self, name: str, text: str) -> None:
        (self.pipelines / name).write_text(text)

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "runner.cli", "dev", str(self.pipelines), *options]
        with self.screen.open("ab") as out:
            return subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def sees(self, text: str, times: int = 1) -> bool:
        return self.screen.read_text().count(text) >= times

    def runner(self, *words: str) -> str:
        """`runner` in the other terminal, with what the first one said to export."""
        (line,) = [x for x in self.screen.read_text().splitlines() if "in another terminal: export " in x]
        exports = dict(word.split("=", 1) for word in shlex.split(line.partition("export ")[2]))
        command = [sys.executable, "-m", "runner.cli", *words]
        return subprocess.run(command, env=os.environ | exports, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def author(home: Path) -> Author:
    return Author(home)


@pytest.fixture
def dev(author: Author) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> subprocess.Popen[bytes]:
        started.append(author.start(*options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.mark.slow
def test_an_author_works_from_the_first_file_to_ctrl_c(
    author: Author, dev: Callable[..., subprocess.Popen[bytes]], eventually: Callable[..., Any]
) -> None:
    # Given a folder with a pipeline; when the environment starts, it is published and the pages are served
    author.write("greet.py", GOOD.format(version="one"))
    process = dev("--port", "0")
    eventually(lambda: author.sees("pages on http://"), 20, "it starts")
    assert author.sees("published pipelines ") and author.sees(": greet")
    address = author.screen.read_text().partition("pages on ")[2].partition(";")[0]

    def served() -> bool:
        try:
            with urllib.request.urlopen(address, timeout=2) as page:
                return bool(page.status == 200)
        except OSError:
            return False

    eventually(served, 15, "the pages are served")
    # And a run can be started from another terminal
    author.runner("dag", "trigger", "greet", "--wait")
    # When a file is changed, the next run has the change, and its log can be read
    author.write("greet.py", GOOD.format(version="two"))
    eventually(lambda: author.sees("published pipelines ", 2), 8, "the change is published")
    author.runner("dag", "trigger", "greet", "--wait")
    assert author.runner("task", "logs", "2") == "hello from two\n"
    # When one is broken, it says where, and the last good version still runs
    author.write("broken.py", "from runner.authoring import dag\n\ndef (:\n")
    eventually(lambda: author.sees("broken.py:3: syntax error"), 8, "the mistake is told")
    assert author.sees("the last good version stays active")
    author.runner("dag", "trigger", "greet", "--wait")
    # When a second one is started beside it, it is refused and disturbs nothing
    second = dev("--port", "0")
    assert second.wait(15) == 1 and author.sees("another `runner dev` works in")
    # When Ctrl-C is pressed, everything ends
    children = psutil.Process(process.pid).children(recursive=True)
    daemons = [p for p in psutil.process_iter(["cmdline"]) if str(author.home) in " ".join(p.info["cmdline"] or [])]
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 0
    assert psutil.wait_procs(children + daemons, timeout=5)[1] == []
    assert len(children) >= 3 and len(daemons) >= 3


def test_a_port_that_is_taken_is_said_before_anything_starts(
    author: Author, dev: Callable[..., subprocess.Popen[bytes]]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert dev("--port", str(port)).wait(20) == 1
    assert author.screen.read_text() == (f"error: port {port} of 127.0.0.1 is taken\nhint: --port 0 finds a free one\n")
    assert not (author.home / "dev").exists()
