"""`runner dag test`: one DAG of a directory, here and now."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bundle.wheelhouse import wheel

CODE = """
from runner.authoring import Context, Skip, dag, task

@task
def one() -> int:
    print("one speaks")
    return 1

@task
def told(n: int, context: Context) -> list:
    return [n, context.params["who"], context.logical_date.isoformat()]

@task
def nothing():
    raise Skip("nothing to do")

@task
def breaks(n: int):
    raise ValueError("no good")

@dag
def good():
    told(one())
    nothing()

@dag
def bad():
    breaks(one())
"""

Try = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def dag_test(tmp_path: Path) -> Try:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "pipeline.py").write_text(CODE)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "runner.cli", "dag", "test", *words, "--dir", str(tmp_path / "pipelines")]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    return call


def test_each_task_is_told_with_its_state_and_value(dag_test: Try) -> None:
    done = dag_test("good", "--date", "2026-01-31T06:00+01:00", "--params", '{"who": "ana"}')
    assert done.returncode == 0, done.stderr
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line != "one speaks"}
    assert lines == {
        "one": "success  one  1",
        "told": 'success  told  [1, "ana", "2026-01-31T06:00:00+01:00"]',
        "nothing": "skipped  nothing",
    }


def test_a_failure_is_the_exit_status_and_shows_the_authors_line(dag_test: Try, tmp_path: Path) -> None:
    done = dag_test("bad", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["breaks"] == {"state": "failed", "value": "no good"}
    line = CODE.splitlines().index('    raise ValueError("no good")') + 1
    assert "one speaks" in done.stderr and f'pipeline.py", line {line}, in breaks' in done.stderr
    assert done.stderr.count("File ") == 1  # nothing of ours
    assert "error: task breaks of DAG bad failed: ValueError: no good" in done.stderr


def test_what_is_asked_wrongly_is_said_in_one_line(dag_test: Try, tmp_path: Path) -> None:
    done = dag_test("gone")
    assert done.returncode == 2 and "no DAG 'gone'" in done.stderr and "bad, good" in done.stderr
    (tmp_path / "pipelines" / "broken.py").write_text("import gone\n")
    done = dag_test("good")
    assert done.returncode == 1 and "broken.py:1: import error" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_it_runs_with_the_bundles_packages(dag_test: Try, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path / "wheelhouse", "tinylib", "1.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheelhouse"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pipelines" / "requirements.txt").write_text("tinylib==1.0\n")
    code = CODE.replace("return 1", "import tinylib; return tinylib.VERSION")
    (tmp_path / "pipelines" / "pipeline.py").write_text(code)
    done = dag_test("good", "--params", '{"who": "ana"}')
    assert done.returncode == 0 and 'success  one  "1.0"' in done.stdout, done.stderr
