"""`deployctl dags` as an operator types it, on a real database and a local directory of artifacts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from runner.authoring.spec import DagSpec, TaskSpec
from runner.bundle.compare import Content, compare
from runner.deployctl.dags import lines
from runner.deployctl.main import run

DAG = """
from runner.authoring import dag, task

@task
def fetch() -> int:
    return {number}

@dag(schedule={schedule!r})
def report():
    fetch()
"""

Deployctl = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def deployctl(
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Deployctl:
    """Run `deployctl dags … --env dev`: (exit code, stdout or what its JSON holds, stderr)."""
    monkeypatch.setenv("SLUICE_DATABASE_URL", database_url)
    monkeypatch.setenv("SLUICE_ARTIFACTS_URL", f"file://{tmp_path}/artifacts")

    def call(*words: str) -> tuple[int, Any, str]:
        capfd.readouterr()
        code = run(["dags", *words, "--env", "dev"])
        out, err = capfd.readouterr()
        return code, json.loads(out) if "--json" in words and out else out, err

    return call


@pytest.fixture
def sales(tmp_path: Path) -> Callable[..., str]:
    """Write the bundle `sales`: its directory."""
    directory = tmp_path / "sales"
    directory.mkdir()

    def write(number: int, schedule: str | None = None) -> str:
        (directory / "report.py").write_text(DAG.format(number=number, schedule=schedule))
        return str(directory)

    return write


def test_from_the_first_push_to_the_last_rollback(deployctl: Deployctl, sales: Callable[..., str]) -> None:
    # Given nothing, a push makes a bundle
    code, first, _ = deployctl("push", sales(1), "--json")
    assert (code, first["bundle"], first["before"], first["dags"]) == (0, "sales", None, ["report"])
    code, _, err = deployctl("rollback")
    assert code == 3 and f"bundle sales has no version before {first['version']}" in err
    assert deployctl("diff")[0] == 3
    # When another is tried, then it shows what would change and changes nothing
    code, tried, _ = deployctl("push", sales(2, "@daily"), "--dry-run", "--json")
    assert code == 0 and tried["before"] == first["version"]
    [changed] = tried["changes"]["dags_changed"]
    assert changed["schedule"] == {"schedule": [None, "@daily"]}
    assert "+    return 2" in tried["changes"]["files"][0]["diff"]
    assert deployctl("list", "--json")[1][0]["bundle_version"] == first["version"]
    # When it is pushed, then it is active, and the same again is no change
    code, _, err = deployctl("push", sales(2, "@daily"))
    assert code == 0 and f"sales: {first['version']} → {tried['version']}: report" in err
    assert "is active already" in deployctl("push", sales(2, "@daily"))[2]
    # Then it can be looked at, and held against the one before, in any direction
    code, shown, _ = deployctl("show", "--json")
    assert (shown["version"], shown["active"], shown["packages"]) == (tried["version"], True, {})
    assert len(shown["sha256"]) == 64 and len(shown["versions"]) == 2
    code, out, err = deployctl("diff")
    assert code == 0 and f"{first['version']} → {tried['version']}" in err
    assert "DAG report: schedule none → @daily" in out and "-    return 1" in out and "+    return 2" in out
    code, back, _ = deployctl("diff", tried["version"][:8], first["version"], "--json")
    assert (back["before"], back["after"]) == (tried["version"], first["version"])
    assert deployctl("diff", first["version"], "--json")[1]["after"] == tried["version"]
    # When it is rolled back, then the first is active, and the history has all three
    code, rolled, _ = deployctl("rollback", "sales", "--json")
    assert (code, rolled["version"]) == (0, first["version"])
    assert deployctl("list", "--json")[1][0]["bundle_version"] == first["version"]
    code, _, err = deployctl("rollback", "--to", tried["version"][:8])
    assert code == 0 and f"{first['version']} → {tried['version']}" in err
    history = deployctl("history", "--json")[1]
    assert [(h["action"], h["after"]) for h in history] == [
        ("rollback", tried["version"]),
        ("rollback", first["version"]),
        ("push", tried["version"]),
        ("push", first["version"]),
    ]
    for words in (("list",), ("show", "sales"), ("show", first["version"]), ("history", "sales")):
        code, out, _ = deployctl(*words)
        assert code == 0 and tried["version"][:12] in out


def test_every_problem_is_told_and_nothing_changes(
    deployctl: Deployctl, sales: Callable[..., str], engine: Engine, tmp_path: Path
) -> None:
    directory = sales(1, "61 * * * *")
    Path(directory, "gone.py").write_text("import not_there\n")
    code, found, err = deployctl("push", directory, "--json")
    assert code == 1 and [p["file"] for p in found["problems"]] == ["gone.py", "report.py"]
    assert "gone.py:1: import error" in err and "report.py:8: DAG 'report': bad schedule" in err
    assert not list(tmp_path.glob("artifacts/**/*.gz"))
    with engine.connect() as c:
        assert c.execute(text("SELECT count(*) FROM bundle")).scalar() == 0


def test_a_connection_that_is_missing_refuses_a_push(
    deployctl: Deployctl, sales: Callable[..., str], engine: Engine
) -> None:
    # Given a task that says which connection it needs
    directory = sales(1)
    file = Path(directory, "report.py")
    file.write_text(file.read_text().replace("@task", "@task(connections=['lake'])"))
    code, found, err = deployctl("push", directory, "--json")
    assert code == 1 and found["problems"][0]["file"] == "report.py"
    assert "needs the connection 'lake', which this environment does not have" in err
    # When the environment has it, it goes through
    with engine.begin() as c:
        c.execute(text("INSERT INTO connection (name, value, updated_by) VALUES ('lake', '{}', 'test')"))
    assert deployctl("push", directory)[0] == 0


def test_what_is_not_there_is_said_in_one_line(deployctl: Deployctl, sales: Callable[..., str], tmp_path: Path) -> None:
    assert deployctl("show")[0] == 2
    for words in (("rollback",), ("diff",), ("rollback", "sales")):
        code, _, err = deployctl(*words)
        assert (code == 2 and "`deployctl dags push" in err) or "none yet" in err
    pushed = deployctl("push", sales(1), "--json")[1]
    other = tmp_path / "other"
    other.mkdir()
    (other / "report.py").write_text(DAG.format(number=1, schedule=None) + "\n")
    code, _, err = deployctl("push", str(other), "--dry-run")
    assert code == 2 and "DAG 'report' belongs to bundle 'sales' already" in err
    (other / "report.py").write_text(DAG.format(number=1, schedule=None).replace("report", "another"))
    assert deployctl("push", str(other))[0] == 0
    code, _, err = deployctl("rollback")
    assert code == 2 and "more than one bundle" in err and "other, sales" in err
    assert deployctl("rollback", "nobody")[0] == 2
    assert deployctl("history", "nobody")[0] == 2
    assert deployctl("diff", "ffff")[0] == 2
    assert deployctl("push", str(other), "--arch", "vax")[0] == 2
    assert deployctl("push", str(tmp_path / "nowhere"))[0] == 2
    # An archive that is gone from the store: no way back to it
    deployctl("push", sales(2), "--json")
    (tmp_path / "artifacts" / "bundles" / f"{pushed['version']}.tar.gz").unlink()
    code, _, err = deployctl("rollback", "sales")
    assert code == 3 and "the archive of" in err and "is gone" in err
    assert deployctl("diff", "--bundle", "sales")[0] == 3


def test_changes_read_as_text() -> None:
    task = TaskSpec(task_id="fetch", upstream=("a",))
    before = Content({"x.py": b"1\n"}, [DagSpec(dag_id="d", tasks=(TaskSpec(task_id="fetch"),)), DagSpec(dag_id="e")])
    after = Content({"x.py": b"2\n"}, [DagSpec(dag_id="d", tasks=(TaskSpec(task_id="a"), task)), DagSpec(dag_id="f")])
    assert list(lines(compare(before, after))) == [
        "DAG f: added",
        "DAG e: removed, it gets no more runs",
        "DAG d: added a",
        "DAG d: task fetch: upstream [] → [a]",
        "file x.py: changed",
        "--- a/x.py",
        "+++ b/x.py",
        "@@ -1 +1 @@",
        "-1",
        "+2",
    ]
