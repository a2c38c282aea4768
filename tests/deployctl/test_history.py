"""`deployctl history | rollback`: code, releases and infrastructure in one list, and each undone by one command."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from runner.deployctl import environment, infra, ledger, main, rollback
from runner.settings import RefusedError
from runner.state import rollouts

DAG = """
from runner.authoring import dag, task

@task
def fetch() -> int:
    return {number}

@dag()
def report():
    fetch()
"""
Run = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def deployctl(
    tree: Path,
    aws_environ: None,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """Run a command line on the environment `tiny`: (exit code, stdout or what its JSON holds, stderr)."""
    monkeypatch.setenv("SLUICE_DATABASE_URL", database_url)
    monkeypatch.setenv("SLUICE_ARTIFACTS_URL", f"file://{tmp_path}/artifacts")
    infra.bootstrap("tiny")

    def call(*words: str) -> tuple[int, Any, str]:
        capfd.readouterr()
        code = main.run([*words, "--env", "tiny"])
        out, err = capfd.readouterr()
        return code, json.loads(out) if "--json" in words and out else out, err

    return call


def push(deployctl: Run, directory: Path, number: int) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "report.py").write_text(DAG.format(number=number))
    code, done, err = deployctl("dags", "push", str(directory), "--json")
    assert code == 0, err
    return str(done["version"])


def rolled(engine: Engine, before: str, after: str, state: str = "succeeded") -> str:
    with engine.begin() as c:
        number = rollouts.create(
            c, role="worker", pool="cpu", release=after, strategy="replace", wish={}, steps=[], who="me@here"
        )
        rollouts.finish(c, number, state, {"before": before})
    return f"roll-{number}"


def applied(stack: str = "network", status: str = "applied", **more: Any) -> str:
    env = environment.load("tiny")
    values = {"action": "apply", "seconds": 12.0, "changes": "2 added", "variables": {}, **more}
    return ledger.write(env, environment.process_environ(env), stack=stack, status=status, **values).id


def test_everything_that_was_changed_is_in_one_list(deployctl: Run, engine: Engine, tmp_path: Path) -> None:
    assert "nothing was changed in tiny yet" in deployctl("history")[2]
    # Given code, a release and a stack that were changed
    first = push(deployctl, tmp_path / "sales", 1)
    second = push(deployctl, tmp_path / "sales", 2)
    roll = rolled(engine, "r1", "r2")
    failed = rolled(engine, "r2", "r3", "failed")
    stack = applied()
    # Then all are in one list, the newest first
    code, lines, err = deployctl("history", "--json")
    assert code == 0, err
    assert {c["id"] for c in lines} == {stack, failed, roll, "code-1", "code-2"}
    assert [c["at"] for c in lines] == sorted((c["at"] for c in lines), reverse=True)
    by_id = {c["id"]: c for c in lines}
    assert (by_id["code-2"]["before"], by_id["code-2"]["after"]) == (first, second)
    assert (by_id[roll]["before"], by_id[roll]["after"], by_id[roll]["who"]) == ("r1", "r2", "me@here")
    assert by_id[failed]["state"] == "failed" and by_id[stack]["seconds"] == 12.0
    assert by_id["code-2"]["tasks"] == {"in_flight": 0, "handed_on": 0, "lost": 0}
    # And a person sees the same, and may ask for one kind
    out = deployctl("history")[1]
    assert f"{first[:8]} → {second[:8]}" in out and "worker/cpu" in out and "2 added" in out
    assert [c["id"] for c in deployctl("history", "--kind", "release", "--json")[1]] == [failed, roll]
    assert deployctl("history", "--kind", "people")[0] == 2


def test_without_the_database_infrastructure_is_still_told(deployctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = applied(error=None)
    monkeypatch.delenv("SLUICE_DATABASE_URL")
    code, lines, err = deployctl("history", "--json")
    assert code == 0 and [c["id"] for c in lines] == [stack] and "without code, releases and tasks" in err


def test_code_is_undone_by_its_number(deployctl: Run, tmp_path: Path) -> None:
    first = push(deployctl, tmp_path / "sales", 1)
    push(deployctl, tmp_path / "sales", 2)
    # The first of all has nothing before it, and what something stands on stays
    code, _, err = deployctl("rollback", "code-1", "--yes")
    assert code == 3 and "sales was changed again since, by code-2" in err
    # A plan changes nothing
    assert deployctl("rollback", "code-2", "--plan")[0] == 0
    assert len(deployctl("history", "--json")[1]) == 2
    code, _, err = deployctl("rollback", "code-2", "--yes")
    assert code == 0 and f"→ {first}" in err and "$ deployctl dags rollback sales" in err
    newest = deployctl("history", "--json")[1][0]
    assert (newest["id"], newest["action"], newest["after"]) == ("code-3", "rollback", first)


@pytest.mark.parametrize("wrong", ["7", "code-x", "infra", "roll", "dag-1"])
def test_what_is_no_id_is_said(deployctl: Run, wrong: str) -> None:
    code, _, err = deployctl("rollback", wrong)
    assert code == 2 and "is no id of the history" in err


def test_a_release_is_undone_by_a_roll_to_the_one_before(
    deployctl: Run, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, failed = rolled(engine, "r1", "r2"), rolled(engine, "r2", "r3", "failed")
    assert deployctl("rollback", failed)[0] == 3
    assert "no roll-99 in the history" in deployctl("rollback", "roll-99")[2]
    asked: list[tuple[str, ...]] = []
    real = main.run
    with monkeypatch.context() as m:
        m.setattr(main, "run", lambda words: asked.append(tuple(words)) or 0 if words[0] == "roll" else real(words))
        code, _, err = deployctl("rollback", older, "--yes")
        assert code == 0, err
    assert asked == [("roll", "--workers", "--pool", "cpu", "--release", "r1", "--env", "tiny", "--yes")]
    newer = rolled(engine, "r2", "r4")
    code, _, err = deployctl("rollback", older)
    assert code == 3 and f"undo {newer} first" in err


def entry(number: int, **more: Any) -> ledger.Entry:
    values = {"action": "apply", "status": "applied", "commit": f"c{number}", "changes": "", **more}
    at = dt.datetime(2026, 1, number, tzinfo=dt.UTC).isoformat()
    return ledger.Entry(id=f"infra-{number}-network", stack="network", at=at, seconds=1.0, who="me", **values)


def test_what_infrastructure_goes_back_to() -> None:
    # The one before; of a failed one the last that was whole
    assert rollback.before(entry(3), [entry(2), entry(1)], entry(3)).commit == "c2"
    assert rollback.before(entry(3), [entry(2, status="failed"), entry(1)], entry(3)).commit == "c1"
    assert rollback.before(entry(3, action="destroy", status="destroyed"), [entry(2)], entry(3)).commit == "c2"
    for wrong, earlier, newest, says in [
        (entry(2), [entry(1)], entry(3), "was changed again since"),
        (entry(1), [], entry(1), "undoing it is destroying it"),
        (entry(3), [entry(2, action="destroy", status="destroyed")], entry(3), "undoing it is destroying it"),
        (entry(1, action="destroy", status="destroyed"), [], entry(1), "nothing is known of network"),
        (entry(2), [entry(1, commit="c1+")], entry(2), "in no commit"),
        (entry(2), [entry(1, commit="")], entry(2), "in no commit"),
    ]:
        with pytest.raises(RefusedError, match=says):
            rollback.before(wrong, earlier, newest)


@pytest.mark.terraform
def test_infrastructure_is_undone_from_the_commit_before(tiny: Path, deployctl: Run, tmp_path: Path) -> None:
    # Given a stack that was applied from one commit and then from another
    def commit(text: str) -> str:
        main_tf = tiny / "stacks" / "network" / "main.tf"
        main_tf.write_text(main_tf.read_text().replace("default = 2", text).replace("default = 5", text))
        git("add", "-A")
        git("commit", "-qm", text)
        return git("rev-parse", "HEAD")

    def git(*words: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / ".gitignore").write_text(".sluice/\nartifacts/\n.terraform*\n")
    first = commit("default = 2")
    assert deployctl("infra", "apply", "--stack", "network", "--yes")[0] == 0
    commit("default = 5")
    assert deployctl("infra", "apply", "--stack", "network", "--yes")[0] == 0
    newer, older = deployctl("history", "--kind", "infra", "--json")[1]
    assert older["after"] == f"3 added at {first[:7]}" and newer["after"].startswith("3 added, 1 changed")
    # When the newer is undone
    code, _, err = deployctl("rollback", older["id"], "--yes")
    assert code == 3 and "was changed again since" in err
    assert deployctl("rollback", newer["id"], "--plan")[0] == 0
    code, _, err = deployctl("rollback", newer["id"], "--yes")
    # Then the stack is as it was, and the working copy as it is
    assert code == 0, err
    assert infra.outputs("tiny", ["network"])["network"]["size"] == 2
    assert "default = 5" in (tiny / "stacks" / "network" / "main.tf").read_text()
    assert git("worktree", "list").count("\n") == 0
    assert len(deployctl("history", "--kind", "infra", "--json")[1]) == 3
