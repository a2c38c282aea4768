"""`deployctl fleet scale | ssh | logs | status`: pools within their bounds, and the way onto a node."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from sqlalchemy import Engine

from runner.deployctl import fleet, main, reach, scaling
from runner.localcloud import state as local_state
from runner.localcloud.state import LocalState
from runner.rollout.facts import Group, Instance
from runner.settings import RefusedError, SluiceError, UsageError
from runner.state import nodes
from runner.state.views import NodeRow

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NODE = NodeRow(
    node_id="i-1",
    role="worker",
    pool="cpu",
    state="ready",
    reason=None,
    requested_by=None,
    deadline_at=None,
    seconds_left=None,
    release="r1",
    slots=4,
    queues=["cpu"],
    running=0,
    heartbeat_age_seconds=0.5,
    live=True,
    instance_id="i-1",
    address="10.0.0.1",
    registered_at=NOW,
    changed_at=NOW,
    changed_seconds=1.0,
    after_drain="",
)
Run = Callable[..., tuple[int, str, str]]


def node(number: int, **changes: Any) -> NodeRow:
    return dataclasses.replace(NODE, node_id=f"i-{number}", instance_id=f"i-{number}", **changes)


def group(desired: int) -> Group:
    return Group("g", desired, 1, 6, "r1", tuple(Instance(f"i-{n}", "InService") for n in range(desired)))


# --- scale ----------------------------------------------------------------------------------------------------


def test_those_go_first_that_do_not_serve_and_then_those_with_the_least_to_finish() -> None:
    rows = [node(0, running=3), node(1), node(2, running=1), node(3, running=2, live=False)]
    assert [i for i, _ in scaling.move("cpu", group(4), 1, rows).leaving] == ["i-3", "i-1", "i-2"]
    assert scaling.move("cpu", group(4), 6, rows).leaving == ()
    # A machine that has not registered yet goes before all that serve
    assert scaling.move("cpu", group(5), 4, rows).leaving == (("i-4", 0),)


@pytest.mark.parametrize("wanted", [0, 7])
def test_outside_of_its_bounds_a_pool_does_not_go(wanted: int) -> None:
    with pytest.raises(RefusedError, match="outside of the pool's bounds, 1 to 6"):
        scaling.move("cpu", group(3), wanted, [])


@pytest.mark.parametrize("word", ["cpu", "cpu=", "cpu=-1", "cpu=x", "=3"])
def test_what_is_no_wish_is_said(word: str) -> None:
    with pytest.raises(UsageError, match="is not POOL=N"):
        scaling.parse([word])


@pytest.fixture
def pool(
    aws_endpoint: str, engine: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A local cloud with one pool `cpu` of two instances, of one to three, and their nodes."""
    state = LocalState(aws_endpoint=aws_endpoint, database_url=database_url, broker_url="redis://127.0.0.1:1/0")
    local_state.save(state, tmp_path / "cloud")
    before = dict(os.environ)
    monkeypatch.setenv("SLUICE_LOCAL_DIR", str(tmp_path / "cloud"))
    os.environ.update(state.environment())
    asg: Any = boto3.client("autoscaling", "us-east-1")
    ec2: Any = boto3.client("ec2", "us-east-1")
    ec2.create_launch_template(LaunchTemplateName="scale", LaunchTemplateData={"ImageId": "ami-12c6146b"})
    name = "sluice-local-worker-cpu"
    asg.create_auto_scaling_group(
        AutoScalingGroupName=name,
        MinSize=1,
        MaxSize=3,
        DesiredCapacity=2,
        AvailabilityZones=["us-east-1a"],
        LaunchTemplate={"LaunchTemplateName": "scale", "Version": "1"},
    )
    (found,) = asg.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    for member in found["Instances"]:
        instance = member["InstanceId"]
        info = nodes.NodeInfo(instance, "worker", "cpu", "r1", "boot", slots=2, instance_id=instance)
        with engine.begin() as c:
            nodes.register(c, info)

    def members() -> list[str]:
        (found,) = asg.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
        return [i["InstanceId"] for i in found["Instances"] if not i["LifecycleState"].startswith("Terminat")]

    yield members
    asg.delete_auto_scaling_group(AutoScalingGroupName=name, ForceDelete=True)
    ec2.delete_launch_template(LaunchTemplateName="scale")
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def deployctl(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line: (exit code, stdout, stderr)."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main.run(words)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_pool_is_scaled_up_and_down_within_its_bounds(pool: Any, deployctl: Run) -> None:
    first = pool()
    # Given a plan, nothing happens
    code, out, _ = deployctl("fleet", "scale", "cpu=3", "--env", "local", "--plan")
    assert code == 0 and "2 → 3" in out and "1 to 3" in out and pool() == first
    # When it is asked for, more come
    assert deployctl("fleet", "scale", "cpu=3", "--env", "local")[0] == 0
    assert len(pool()) == 3 and set(first) < set(pool())
    (new,) = set(pool()) - set(first)
    # Those that go are asked for; the one that has not registered goes first
    code, _, err = deployctl("fleet", "scale", "cpu=2", "--env", "local")
    assert code == 2 and "pass --yes" in err and len(pool()) == 3
    code, out, _ = deployctl("fleet", "scale", "cpu=2", "--env", "local", "--yes", "--json")
    assert code == 0 and json.loads(out) == [{"pool": "cpu", "before": 3, "after": 2, "leaving": [new]}]
    assert pool() == first


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("cpu=4",), 3, "cpu=4 is outside of the pool's bounds, 1 to 3"),
        (("cpu=0",), 3, "cpu=0 is outside of the pool's bounds, 1 to 3"),
        (("gpu=1",), 2, "local has no worker pool 'gpu'"),
        (("cpu=2", "cpu=3"), 2, "the pool cpu is named twice"),
    ],
)
def test_what_is_refused_is_one_line(pool: Any, deployctl: Run, words: tuple[str, ...], code: int, says: str) -> None:
    before = pool()
    got, _, err = deployctl("fleet", "scale", *words, "--env", "local", "--yes")
    assert got == code and says in err and "Traceback" not in err and pool() == before


# --- ssh, logs, status ----------------------------------------------------------------------------------------


def test_the_way_onto_a_node_of_aws() -> None:
    ssm = ["aws", "ssm", "start-session", "--region", "eu-west-1", "--target", "i-1"]
    assert reach.shell_on(NODE, "eu-west-1", "ssm", []) == ssm
    assert reach.shell_on(NODE, "eu-west-1", "ssh", []) == ["ssh", "10.0.0.1"]
    journal = ["journalctl", "--unit", "runner-*"]
    assert reach.shell_on(NODE, "eu-west-1", "ssh", journal)[2:] == ["--", "journalctl --unit 'runner-*'"]
    document, parameters = reach.shell_on(NODE, "eu-west-1", "ssm", journal)[-3::2]
    assert document == "AWS-StartInteractiveCommand"
    assert json.loads(parameters.removeprefix("command=")) == ["journalctl --unit 'runner-*'"]


@pytest.mark.parametrize(
    ("changes", "way", "says"),
    [
        ({"state": "gone"}, "ssm", "i-1 is gone"),
        ({"address": ""}, "ssh", "has told no address"),
        ({"instance_id": ""}, "ssm", "is no EC2 instance"),
    ],
)
def test_a_node_that_cannot_be_reached_so(changes: dict[str, Any], way: str, says: str) -> None:
    with pytest.raises(SluiceError, match=says):
        reach.shell_on(dataclasses.replace(NODE, **changes), "eu-west-1", way, [])


def test_in_the_local_cloud_a_shell_and_the_logs_are_in_the_nodes_directory(pool: Any, tmp_path: Path) -> None:
    name = pool()[0]
    home = tmp_path / "cloud" / "nodes" / name
    (home / "log").mkdir(parents=True)
    (home / "console.log").write_text("power on\n")
    (home / "log" / "worker.log").write_text("".join(f"line {n}\n" for n in range(9)))

    def deployctl(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "runner.deployctl.main", "fleet", words[0], "--env", "local", *words[1:]]
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])

    # A command runs there, as the node knows itself, with its own exit status; what is run is shown
    done = deployctl("ssh", name, "--", "sh", "-c", "pwd; echo $SLUICE_NODE_ID; exit 7")
    assert done.returncode == 7 and done.stdout.split() == [str(home), name]
    assert f"$ cd {home} && sh -c" in done.stderr
    # And the logs are shown from their ends
    done = deployctl("logs", name, "-n", "2")
    assert done.returncode == 0 and "power on" in done.stdout
    assert "line 8" in done.stdout and "line 6" not in done.stdout
    done = deployctl("logs", "i-none")
    assert done.returncode == 2 and "local has no node 'i-none'" in done.stderr


def test_why_a_node_drains_and_how_long_its_tasks_have() -> None:
    assert fleet.why(NODE) == ""
    draining = dataclasses.replace(
        NODE, state="draining", reason="noisy fan", requested_by="me@here", seconds_left=90.0
    )
    assert fleet.why(draining) == "noisy fan, by me@here; 1 min 30 s left"
    assert fleet.why(dataclasses.replace(draining, seconds_left=-1.0)).endswith("past its deadline")
    assert fleet.why(dataclasses.replace(draining, state="drained")) == "noisy fan, by me@here"
