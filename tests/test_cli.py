"""`runner` as an author or an operator types it, on a real database."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from runner import cli
from runner.authoring.spec import DagSpec, TaskSpec
from runner.deployctl.main import guarded
from runner.localcloud.engines import Postgres
from runner.state import bundles, nodes, transitions
from runner.storage import Storage
from runner.storage.logs import LogWriter, log_prefix

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runner(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line: (exit code, stdout, stderr)."""

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = guarded(cli.app, words, "runner")
        out, err = capfd.readouterr()
        return code, out, err

    return run


class World:
    """A DAG of two tasks on a real database, and a worker played by the test."""

    def __init__(self, engine: Engine, storage: Storage) -> None:
        self.engine = engine
        self.storage = storage
        tasks = (TaskSpec(task_id="fetch"), TaskSpec(task_id="send", upstream=("fetch",)))
        spec = DagSpec(dag_id="report", schedule="@daily", tasks=tasks)
        with engine.begin() as c:
            bundles.register_and_activate(c, version="v1", name="b", url="file:///b", size=1, specs=[spec], who="t")
            nodes.register(c, nodes.NodeInfo("n1", "worker", "default", "r1", "boot", slots=4, queues=("default",)))

    def take(self) -> transitions.Claim | None:
        """Dispatch, and take the first task that is due."""
        with self.engine.begin() as c:
            for message in transitions.dispatch(c):
                return transitions.claim(c, message.task_instance, message.attempt, node_id="n1", lease_seconds=300)
        return None

    def end(self, claim: transitions.Claim, result: str = "success", error: str | None = None) -> None:
        with self.engine.begin() as c:
            transitions.finish(c, [transitions.Outcome(claim.task_instance, claim.token, result, error=error)])  # type: ignore[arg-type]

    def log(self, claim: transitions.Claim) -> LogWriter:
        return LogWriter(self.storage, log_prefix(claim.dag_id, claim.run_id, claim.task_id, claim.attempt))


@pytest.fixture
def world(engine: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("SLUICE_DATABASE_URL", database_url)
    monkeypatch.setenv("SLUICE_STORAGE_URL", f"file://{tmp_path}/storage")
    return World(engine, Storage.open(f"file://{tmp_path}/storage"))


def test_db_upgrade_makes_the_schema_and_may_run_again(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, runner: Run
) -> None:
    # Given an empty database
    monkeypatch.setenv("SLUICE_DATABASE_URL", postgres.create_database("fresh"))
    code, _, err = runner("dag", "list")
    assert code == 1 and "db upgrade" in err and "Traceback" not in err
    # When it is upgraded, in both phases or all at once, then it can be read
    for words in (("--phase", "pre"), ("--phase", "post"), ()):
        assert runner("db", "upgrade", *words)[0] == 0
    code, out, _ = runner("dag", "list", "--json")
    assert (code, json.loads(out)) == (0, [])
    assert runner("db", "upgrade", "--phase", "sideways")[0] == 2


def test_a_run_from_its_trigger_to_its_end(world: World, runner: Run) -> None:
    # Given a DAG; when it is triggered with a date and parameters
    code, out, _ = runner("dag", "list")
    assert code == 0 and "report" in out and "@daily" in out
    date, params = "2026-01-31T06:00+01:00", '{"day": 31}'
    code, out, _ = runner("dag", "trigger", "report", "--logical-date", date, "--params", params, "--json")
    run_id = str(json.loads(out)["run_id"])
    # Then the run has both, and its tasks are shown
    assert code == 0
    code, out, _ = runner("run", "show", run_id, "--json")
    found = json.loads(out)
    assert dt.datetime.fromisoformat(found["logical_date"]) == dt.datetime.fromisoformat(date)
    assert found["params"] == {"day": 31} and found["state"] == "running"
    assert {t["task_id"]: t["state"] for t in found["task_instances"]} == {"fetch": "ready", "send": "waiting"}
    # When its first task fails, the run is listed as what it is, with the reason
    claim = world.take()
    assert claim is not None
    world.end(claim, "failed", "OSError: the disk is full")
    code, out, _ = runner("run", "show", run_id)
    assert f"run {run_id} of report: failed" in out and "OSError: the disk is full" in out
    code, out, _ = runner("run", "list", "--dag", "report", "--state", "failed", "--json")
    assert code == 0 and [r["id"] for r in json.loads(out)] == [int(run_id)]
    assert runner("run", "list", "--state", "success", "--json")[1] == "[]\n"
    # And the same date again is refused
    code, _, err = runner("dag", "trigger", "report", "--logical-date", date)
    assert code == 2 and "has a run of" in err


def test_wait_ends_with_the_run_and_tells_how(world: World, runner: Run) -> None:
    def work(result: str) -> None:
        done = 0
        while done < 2 and not over.wait(0.02):
            if claim := world.take():
                world.end(claim, result)
                done += 1

    for result, code in (("success", 0), ("failed", 1)):
        over = threading.Event()
        thread = threading.Thread(target=work, args=(result,))
        thread.start()
        try:
            assert runner("dag", "trigger", "report", "--wait")[0] == code
        finally:
            over.set()
            thread.join()


def test_logs_can_be_read_while_the_task_runs_and_followed_to_its_end(world: World, runner: Run) -> None:
    runner("dag", "trigger", "report")
    claim = world.take()
    assert claim is not None
    task = str(claim.task_instance)
    log = world.log(claim)
    # Given a task that runs
    log.append(b"one\n")
    assert runner("task", "logs", task)[:2] == (0, "one\n")

    # When it is followed, over a second attempt, then all of it comes and the command ends with the task
    def go_on() -> None:
        log.append(b"two\n")
        with world.engine.begin() as c:
            transitions.interrupt_node(c, "n1", "the worker was restarted")
        again = world.take()
        assert again is not None and again.attempt == 2
        world.log(again).append(b"three\n")
        world.end(again)

    timer = threading.Timer(0.7, go_on)
    timer.start()
    code, out, _ = runner("task", "logs", task, "--follow")
    timer.join()
    assert code == 0 and out == "one\ntwo\nthree\n"
    # And each attempt can still be read by itself
    assert runner("task", "logs", task)[1] == "three\n"
    assert runner("task", "logs", task, "--attempt", "1", "--follow")[1] == "one\ntwo\n"
    code, _, err = runner("task", "logs", task, "--attempt", "3")
    assert code == 2 and "has no attempt 3" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("dag trigger nope", "no DAG 'nope'"),
        ("dag trigger report --logical-date tomorrow", "'tomorrow' is no ISO 8601 time"),
        ("dag trigger report --logical-date 2026-01-31", "has no time zone"),
        ("dag trigger report --params [1]", "must be a JSON object"),
        ("dag trigger report --params {", "--params is no JSON"),
        ("run list --dag nope", "no DAG 'nope'"),
        ("run list --state done", "no run state 'done'"),
        ("run list --limit 0", "--limit"),
        ("run show 77", "no run 77"),
        ("run show x", "run_id"),
        ("task logs 77", "no task instance 77"),
        ("nonsense", "No such command 'nonsense'"),
        ("dev /does/not/exist", "is not a folder of pipelines"),
    ],
)
def test_a_mistake_is_one_line_a_hint_and_2(world: World, runner: Run, words: str, says: str) -> None:
    code, out, err = runner(*words.split())
    error, hint = err.splitlines()
    assert (code, out) == (2, "")
    assert error.startswith("error: ") and says in error
    assert hint.startswith("hint: ") and len(hint) > 10


def test_the_hint_about_a_missing_zone_is_a_time_that_is_taken(world: World, runner: Run) -> None:
    _, _, err = runner("dag", "trigger", "report", "--logical-date", "2026-01-31")
    assert runner("dag", "trigger", "report", "--logical-date", err.split("e.g. ")[1].strip())[0] == 0


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch, runner: Run) -> None:
    monkeypatch.setenv("SLUICE_DATABASE_URL", "postgresql://u:hunter2@db/x")
    monkeypatch.setenv("SLUICE_BROKER_URL", "rediss://:hunter3@cache/0")
    for words in (("config", "show"), ("config", "show", "--json")):
        code, out, _ = runner(*words)
        assert code == 0 and "hunter" not in out
        assert "postgresql://u:***@db/x" in out and "rediss://:***@cache/0" in out


@pytest.mark.parametrize("words", ["dag list", "run show 1", "db upgrade", "dag trigger x", "task logs 1"])
def test_without_a_database_it_says_where_one_comes_from(runner: Run, words: str) -> None:
    code, _, err = runner(*words.split())
    assert code == 2 and "SLUICE_DATABASE_URL is not set" in err and "deployctl local env" in err


def test_a_database_that_is_away_is_one_line(monkeypatch: pytest.MonkeyPatch, runner: Run) -> None:
    monkeypatch.setenv("SLUICE_DATABASE_URL", "postgresql://u:hunter2@127.0.0.1:1/x")
    code, _, err = runner("dag", "list")
    assert code == 1 and err.startswith("error: cannot reach the database: ") and len(err.splitlines()) == 2
    assert "hunter2" not in err and "psycopg" not in err


@pytest.mark.parametrize(
    ("variable", "value"), [("SLUICE_SLOTS", "many"), ("SLUICE_SLOTS", "0"), ("SLUICE_LOG_LEVEL", "loud")]
)
def test_a_setting_that_is_wrong_names_its_variable_and_the_value(
    monkeypatch: pytest.MonkeyPatch, runner: Run, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    code, _, err = runner("config", "show")
    assert code == 2 and variable in err and repr(value) in err and "hint: " in err


def test_a_url_that_is_wrong_does_not_show_its_password(monkeypatch: pytest.MonkeyPatch, runner: Run) -> None:
    monkeypatch.setenv("SLUICE_DATABASE_URL", "mysql://u:hunter2@db/x")
    code, _, err = runner("config", "show")
    assert code == 2 and "must start with postgresql://, not mysql://" in err and "hunter2" not in err


def test_a_run_is_cleared_marked_and_killed_by_hand(world: World, runner: Run) -> None:
    # Given a run whose first task has failed
    assert runner("dag", "trigger", "report")[0] == 0
    claim = world.take()
    assert claim
    world.end(claim, "failed", "no rows")
    run = str(claim.run_id)
    # Then what failed runs again
    code, _, err = runner("run", "clear", run, "--failed")
    assert (code, err.strip()) == (0, f"run {run}: 2 task instances run again")
    # and a task may be counted as done, and the rest be ended
    assert runner("run", "mark", run, "success", "fetch")[0] == 0
    assert runner("run", "kill", run)[0] == 0
    assert "failed" in runner("run", "show", run)[1]
    # and a wrong name is said
    code, _, err = runner("run", "kill", run, "fetsch")
    assert code == 2 and "has no task 'fetsch'" in err
    assert runner("run", "mark", run, "success")[0] == 2


def test_a_backfill_from_the_shell(world: World, runner: Run) -> None:
    # A dry run shows what it would do and does nothing
    code, out, err = runner("backfill", "report", "--from", "2026-03-01", "--to", "2026-03-03", "--dry-run")
    assert code == 0 and "3 runs" in out + err and "2026-03-02 00:00:00Z" in out
    assert "no backfill" in runner("backfills", "show", "1")[2]
    # then it is filed, shown, paused and cancelled
    code, _, err = runner("backfill", "report", "--from", "2026-03-01", "--to", "2026-03-03")
    assert code == 0 and "backfill 1: 3 runs" in err
    assert "0 of 3 runs over" in runner("backfills", "show", "1")[2]
    assert "paused" in runner("backfills", "pause", "1")[2]
    assert "cancelled" in runner("backfills", "cancel", "1")[2]
    assert runner("backfills", "resume", "1")[0] == 3
    assert runner("backfill", "report", "--from", "yesterday", "--to", "2026-03-03")[0] == 2
    assert runner("backfill", "report", "--from", "2026-03-01", "--to", "2026-03-01", "--all", "--failed")[0] == 2


def test_params_and_assets_from_the_shell(engine: Engine, tmp_path: Path, world: World, runner: Run) -> None:
    from runner.authoring import DAG, Asset, Param, task

    @task(outlets=[Asset("s3://lake/out")])
    def t() -> None: ...

    with DAG("typed", params={"n": Param(3, type="integer"), "day": Param("x", type="string")}) as typed:
        t()
    with DAG("uses", schedule=Asset("s3://lake/out")) as uses:
        t()
    with engine.begin() as c:
        specs = [typed.spec(), uses.spec()]
        bundles.register_and_activate(c, version="v9", name="c", url="file:///c", size=1, specs=specs, who="t")

    code, out, _ = runner("dag", "trigger", "typed", "-p", "n=5", "-p", "day=monday", "--json")
    assert code == 0
    _, shown, _ = runner("run", "show", str(json.loads(out)["run_id"]), "--json")
    assert json.loads(shown)["params"] == {"n": 5, "day": "monday"}
    code, _, err = runner("dag", "trigger", "typed", "-p", "n=many", "-p", "dya=x")
    assert code == 2
    assert "param 'dya': the DAG has none of that name" in err
    assert "param 'n': 'many' is not of type 'integer'" in err
    assert runner("dag", "trigger", "typed", "-p", "n")[0] == 2

    code, _, err = runner("asset", "update", "s3://lake/out", "--extra", '{"rows": 1}')
    assert (code, "1 DAG waits for it" in err) == (0, True)
    code, _, err = runner("asset", "update", "s3://lake/typo")
    assert (code, "no DAG uses an asset" in err) == (2, True)
    code, out, _ = runner("asset", "list", "--json")
    (row,) = json.loads(out)
    assert (row["asset"], row["made_by"], row["used_by"]) == ("s3://lake/out", ["typed", "uses"], ["uses"])
    assert row["updated_at"]
