"""`deployctl fleet load` and `fleet simulate`, as their user sees them."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from sqlalchemy import Engine

from runner.authoring.spec import DagSpec, TaskSpec
from runner.deployctl import main
from runner.rollout.autoscale.load import read
from runner.state import bundles, nodes, scaling, transitions

BURST = "queue,ready_at,seconds\n" + "default,0,10\n" * 60 + "other,600,5\n"


@pytest.fixture
def burst(tmp_path: Path) -> Path:
    path = tmp_path / "burst.csv"
    path.write_text(BURST)
    return path


def test_a_table_and_a_picture(burst: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "burst.svg"
    assert main.run(["fleet", "simulate", str(burst), "--max", "3", "--boot", "60", "--picture", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "61 tasks, 0.2 hours of work, ready within 10 min 0 s" in out
    assert [line.split()[0] for line in out.splitlines()[3:]] == ["sluice", "fixed:2", "fixed:3", "cpu:60", "backlog:1"]
    # Then the picture is an SVG that names each policy, and the same input gives the same file
    drawn = picture.read_bytes()
    words = {e.text for e in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")}
    assert {"sluice", "cpu:60", "Tasks that wait", "Nodes that are paid for"} <= words
    assert main.run(["fleet", "simulate", str(burst), "--max", "3", "--boot", "60", "--picture", str(picture)]) == 0
    assert picture.read_bytes() == drawn


def test_numbers_for_a_machine(burst: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--policy", "fixed:3", "--policy", "sluice:max=2", "--slots", "4", "--queue", "default", "--json"]
    assert main.run(["fleet", "simulate", str(burst), *words, "--instance-type", "m7i.xlarge", "--spot", "100"]) == 0
    fixed, sluice = json.loads(capsys.readouterr().out)
    # 60 tasks of 10 s on 12 slots: the last begin after 40 s; a spot m7i.xlarge is $0.2016 x 0.4
    assert fixed["tasks"] == 60 and fixed["wait_seconds"]["max"] == 40 and fixed["nodes_at_most"] == 3
    assert fixed["cost"] == pytest.approx(fixed["node_hours"] * 0.08064, abs=0.01)
    assert sluice["policy"] == "sluice:max=2" and sluice["nodes_at_most"] == 2 and sluice["busy_nodes_taken"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.csv"], "there is no file nowhere.csv"),
        (["LOAD", "--policy", "magic"], "no policy 'magic'"),
        (["LOAD", "--min", "5", "--max", "2"], "a pool of 5 to 2 nodes of 4 slots is none"),
        (["LOAD", "--queue", "cpu"], "holds no task of queue cpu"),
        (["LOAD", "--instance-type", "z9.large"], "no price of 'z9.large'"),
        (["LOAD", "--picture", "x.gif"], "x.gif is neither .svg nor .png"),
        (["LOAD", "--picture", "/nowhere/x.svg"], "there is no directory /nowhere"),
        (["LOAD", "--cpu", "2"], "--cpu a part between 0 and 1"),
    ],
)
def test_bad_input_is_a_line(words: list[str], said: str, burst: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(burst) if w == "LOAD" else w for w in words]
    assert main.run(["fleet", "simulate", *words]) == 2
    err = capsys.readouterr().err
    assert said in " ".join(err.split()) and "Traceback" not in err


def test_a_made_up_load_can_be_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["fleet", "load", "--synthetic", "steady"]) == 0
    path = tmp_path / "steady.csv"
    path.write_text(capsys.readouterr().out)
    with path.open() as file:
        assert len(read(file, "x")) > 5000
    for words in ([], ["--synthetic", "x"], ["--env", "local", "--synthetic", "daily"]):
        assert main.run(["fleet", "load", *words]) == 2


def test_the_recorded_load_is_what_was_executed(engine: Engine) -> None:
    # Given a run whose tasks were executed on two queues, one that waits, and one of a year ago
    tasks = (TaskSpec(task_id="a"), TaskSpec(task_id="b", queue="cpu"), TaskSpec(task_id="c", queue="nobody"))
    with engine.begin() as c:
        spec = [DagSpec(dag_id="d", tasks=tasks)]
        bundles.register_and_activate(c, version="v1", name="b", url="", size=0, specs=spec, who="test")
        nodes.register(c, nodes.NodeInfo("w1", "worker", "default", "r1", "boot", 4, ("default", "cpu")))
        for year in (2025, 2026):
            assert transitions.create_run(c, "d", dt.datetime(year, 3, 1, tzinfo=dt.UTC))
            transitions.dispatch(c)
            claims = transitions.take(c, node_id="w1", queues=["default", "cpu"], n=4, lease_seconds=60)
            transitions.finish(c, [transitions.Outcome(x.task_instance, x.token, "success") for x in claims])
        c.exec_driver_sql("UPDATE task_instance SET started_at = ended_at - interval '3 seconds' WHERE queue = 'cpu'")
        c.exec_driver_sql(
            "UPDATE task_instance SET ready_at = ready_at - interval '1 year' "
            "WHERE run_id = (SELECT min(id) FROM dag_run)"
        )
    since = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    with engine.connect() as c:
        found: list[Any] = sorted(scaling.load(c, since))
        assert [(q, round(s)) for q, _, s in found] == [("cpu", 3), ("default", 0)]
        assert [q for q, _, _ in scaling.load(c, since, ["cpu"])] == ["cpu"]
