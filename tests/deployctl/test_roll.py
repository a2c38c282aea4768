"""`deployctl roll | fleet | release | dags` as an operator types them, on an emulated AWS and a real database."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from sqlalchemy import Engine, text

from runner.authoring.spec import DagSpec, TaskSpec
from runner.deployctl.watch import Watch
from runner.localcloud import state as local_state
from runner.localcloud.state import LocalState
from runner.rollout.cloud import Cloud
from runner.state import bundles, nodes, queries, rollouts, transitions
from tests.archives import archive

POOLS = ("cpu", "default")
OLD, NEW = "0" * 12, "1" * 12


class World:
    """A local cloud that consists of an emulated AWS and a database; workers are played by a thread."""

    def __init__(self, engine: Engine, state: LocalState) -> None:
        self.engine = engine
        self.cloud = Cloud("us-east-1")
        self.asg: Any = boto3.client("autoscaling", "us-east-1")
        self.s3: Any = boto3.client("s3", "us-east-1")
        self.bucket = state.artifacts_url.removeprefix("s3://")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)

    def build(self) -> None:
        self.s3.create_bucket(Bucket=self.bucket)
        boto3.client("ec2", "us-east-1").create_launch_template(
            LaunchTemplateName="roll", LaunchTemplateData={"ImageId": "ami-12c6146b"}
        )
        for pool in POOLS:
            self.asg.create_auto_scaling_group(
                AutoScalingGroupName=f"sluice-local-worker-{pool}",
                MinSize=1,
                MaxSize=2,
                DesiredCapacity=1,
                AvailabilityZones=["us-east-1a"],
                LaunchTemplate={"LaunchTemplateName": "roll", "Version": "1"},
                Tags=[{"Key": "Release", "Value": OLD, "PropagateAtLaunch": True}],
            )
        spec = DagSpec(dag_id="sluice_heartbeat", tasks=(TaskSpec(task_id="beat"),))
        with self.engine.begin() as c:
            bundles.register_and_activate(c, version="builtin", name="builtin", url="", size=0, specs=[spec], who="t")
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for pool in POOLS:
            self.asg.delete_auto_scaling_group(AutoScalingGroupName=f"sluice-local-worker-{pool}", ForceDelete=True)
        boto3.client("ec2", "us-east-1").delete_launch_template(LaunchTemplateName="roll")
        for key in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", []):
            self.s3.delete_object(Bucket=self.bucket, Key=key["Key"])
        self.s3.delete_bucket(Bucket=self.bucket)

    def publish(self, release: str, label: str = "") -> None:
        self.s3.put_object(Bucket=self.bucket, Key=f"releases/{release}.tar.gz", Body=archive())
        with self.engine.begin() as c:
            rollouts.add_release(c, release=release, label=label, git_commit="", url="x", size=1, who="test")

    def serving(self) -> dict[str, list[str]]:
        with self.engine.connect() as c:
            found = [n for n in queries.fleet(c) if n.state == "ready"]
        return {p: sorted(n.release for n in found if n.pool == p) for p in POOLS}

    def node(self, pool: str) -> str:
        with self.engine.connect() as c:
            return next(n.node_id for n in queries.fleet(c, pools=[pool]))

    def tag(self, pool: str) -> str:
        return self.cloud.group(f"sluice-local-worker-{pool}").release

    def _play(self) -> None:
        while not self._stop.wait(0.2):
            for pool in POOLS:
                for m in self.cloud.group(f"sluice-local-worker-{pool}").instances:
                    info = nodes.NodeInfo(
                        m.instance_id,
                        "worker",
                        pool,
                        m.release,
                        "boot",
                        slots=2,
                        queues=(nodes.queue_of(m.instance_id),),
                        instance_id=m.instance_id,
                    )
                    with self.engine.begin() as c:
                        if queries.node(c, m.instance_id) is None:
                            nodes.register(c, info)
                        orders = nodes.heartbeat(c, m.instance_id)
                        if orders and orders.state == "draining":
                            nodes.drained(c, m.instance_id)
            with self.engine.begin() as c:
                for message in transitions.dispatch(c):
                    node_id = message.queue.removeprefix("node.")
                    claim = transitions.claim(
                        c, message.task_instance, message.attempt, node_id=node_id, lease_seconds=300
                    )
                    if claim:
                        transitions.finish(c, [transitions.Outcome(claim.task_instance, claim.token, "success")])


@pytest.fixture
def world(
    aws_endpoint: str, database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    state = LocalState(aws_endpoint=aws_endpoint, database_url=database_url, broker_url="redis://127.0.0.1:1/0")
    local_state.save(state, tmp_path / "cloud")
    before = dict(os.environ)
    monkeypatch.setenv("SLUICE_LOCAL_DIR", str(tmp_path / "cloud"))
    os.environ.update(state.environment())
    world = World(engine, state)
    world.build()
    deadline = time.monotonic() + 10
    while not all(world.serving().values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield world
    world.close()
    os.environ.clear()
    os.environ.update(before)


Run = Callable[..., tuple[int, str, str]]
ROLL = ("roll", "--workers", "--env", "local")


def test_a_roll_driven_from_the_terminal(world: World, deployctl: Run) -> None:
    # Given a new release
    world.publish(NEW, "faster")
    # When one pool is rolled
    code, _, err = deployctl(*ROLL, "--pool", "default", "--release", NEW, "--yes", "--drive")
    # Then its story is told and only that pool has changed
    assert code == 0, err
    assert "step 2 surge: done" in err and "succeeded" in err
    assert world.serving() == {"cpu": [OLD], "default": [NEW]}
    # And the other pool is rolled by a roll of all, which leaves the first alone
    code, out, err = deployctl(*ROLL, "--yes", "--drive", "--json")
    assert code == 0, err
    assert [(r["pool"], r["state"]) for r in json.loads(out)] == [("cpu", "succeeded")]
    assert world.serving() == {"cpu": [NEW], "default": [NEW]}
    # And then there is nothing to do
    code, _, err = deployctl(*ROLL, "--yes")
    assert code == 0 and f"nothing to do: every worker of cpu, default runs {NEW}" in err


def test_a_plan_shows_all_and_touches_nothing(world: World, deployctl: Run) -> None:
    world.publish(NEW)
    code, out, _ = deployctl(*ROLL, "--plan", "--json")
    plan = json.loads(out)
    assert code == 0 and plan["release"] == NEW
    actions = ["tag", "surge", "wait_ready", "heartbeat", "bake", "drain", "terminate"]
    assert {p: [s["action"] for s in steps] for p, steps in plan["pools"].items()} == dict.fromkeys(POOLS, actions)
    code, out, _ = deployctl(*ROLL, "--plan")
    assert code == 0 and f"roll to {NEW}" in out and out.count("default") >= len(actions)
    assert world.tag("cpu") == OLD
    with world.engine.connect() as c:
        assert rollouts.recent(c) == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--workers", "--pool", "gpu", "--yes"), 2, "local has no worker pool 'gpu'"),
        (("--workers", "--release", "nope", "--yes"), 2, "no release 'nope'"),
        (("--workers", "--batch", "0", "--yes"), 2, "a batch of 0 moves nothing"),
        (("--workers", "--batch", "2"), 2, "there is no terminal to ask on"),
        ((), 2, "say what to do"),
        (("--workers", "--abort"), 2, "say what to do"),
        (("--all", "--resume"), 2, "say what to do"),
        (("--web", "--pool", "cpu"), 2, "--pool names worker pools"),
        (("--web", "--yes"), 2, "there is no autoscaling group sluice-local-web"),
        (("--workers", "--strategy", "blue"), 2, "--strategy is replace or in-place, not 'blue'"),
        (("--workers", "--bake", "soon"), 2, "--bake 'soon' is no duration"),
        (("--workers", "--batch", "half"), 2, "a batch of 'half' is neither a count nor a share"),
        (("--workers", "--gate-promql", "up"), 2, "is not a URL and a query"),
        (("--revert", "3"), 2, "no roll 3"),
        (("--watch",), 2, "nothing was ever rolled in local"),
        (("--watch", "7"), 2, "no roll 7"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    world: World, deployctl: Run, words: tuple[str, ...], code: int, says: str
) -> None:
    world.publish(NEW)
    got, _, err = deployctl("roll", "--env", "local", *words)
    assert got == code and says in err and "Traceback" not in err
    assert world.tag("default") == OLD


def test_a_release_whose_archive_is_gone_is_not_rolled_out(world: World, deployctl: Run) -> None:
    world.publish(NEW)
    world.s3.delete_object(Bucket=world.bucket, Key=f"releases/{NEW}.tar.gz")
    code, _, err = deployctl(*ROLL, "--yes")
    assert code == 1 and f"the archive of release {NEW} is not in s3://" in err


def test_ctrl_c_leaves_the_roll_running_and_says_how_to_go_on(
    world: World, deployctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(NEW)

    def interrupted(self: Watch) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(Watch, "look", interrupted)
        code, _, err = deployctl(*ROLL, "--pool", "cpu", "--yes")
    assert code == 130
    (line,) = [line for line in err.splitlines() if "goes on without this terminal" in line]
    assert "`deployctl watch 1 --env local`" in line
    # A second roll is refused, and says who and since when
    code, _, err = deployctl(*ROLL, "--yes")
    assert code == 3 and "worker pool cpu is being rolled to" in err and "(roll 1)" in err
    # And an abort takes it back
    code, _, err = deployctl("roll", "--env", "local", "--abort", "1", "--drive")
    assert code == 1 and "aborted by" in err
    assert world.serving()["cpu"] == [OLD] and world.tag("cpu") == OLD


def test_the_fleet_and_a_drain_by_hand(world: World, deployctl: Run) -> None:
    node = world.node("cpu")
    code, out, _ = deployctl("fleet", "status", "--env", "local", "--json")
    assert code == 0 and {(n["node_id"], n["state"]) for n in json.loads(out)} >= {(node, "ready")}
    assert deployctl("fleet", "status", "--env", "local")[0] == 0
    code, _, err = deployctl("fleet", "drain", node, "--env", "local", "--reason", "noisy fan")
    assert code == 0 and f"{node} drains: 0 tasks" in err
    deadline = time.monotonic() + 5
    while world.serving()["cpu"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    code, _, err = deployctl("fleet", "drain", node, "--env", "local", "--reason", "again")
    assert code == 0 and "is drained already (noisy fan)" in err
    assert deployctl("fleet", "undrain", node, "--env", "local")[0] == 3
    code, _, err = deployctl("fleet", "undrain", world.node("default"), "--env", "local")
    assert code == 0 and "does not drain: it is ready" in err
    code, _, err = deployctl("fleet", "drain", "i-none", "--env", "local", "--reason", "x")
    assert code == 2 and "local has no node 'i-none'" in err


def test_pipelines_are_pushed_listed_and_refused_when_broken(world: World, deployctl: Run, tmp_path: Path) -> None:
    folder = tmp_path / "pipelines"
    folder.mkdir()
    (folder / "one.py").write_text(
        "from runner.authoring import dag, task\n\n@task\ndef t() -> int:\n    return 1\n\n"
        "@dag()\ndef one() -> None:\n    t()\n"
    )
    code, out, err = deployctl("dags", "push", str(folder), "--env", "local", "--json")
    assert code == 0, err
    assert json.loads(out)["dags"] == ["one"]
    assert "is active already" in deployctl("dags", "push", str(folder), "--env", "local")[2]
    code, out, _ = deployctl("dags", "list", "--env", "local", "--json")
    assert "one" in [d["dag_id"] for d in json.loads(out)]
    (folder / "two.py").write_text("import nonsense_that_is_not_there\n")
    code, _, err = deployctl("dags", "push", str(folder), "--env", "local")
    assert code == 1 and "nonsense_that_is_not_there" in err and "Traceback" not in err
    assert deployctl("dags", "push", str(tmp_path / "none"), "--env", "local")[0] == 2
    with world.engine.connect() as c:
        assert c.execute(text("SELECT count(*) FROM dag WHERE active AND bundle = 'pipelines'")).scalar() == 1


def test_releases_are_listed_with_the_nodes_that_run_them(world: World, deployctl: Run) -> None:
    assert "no release in local yet" in deployctl("release", "list", "--env", "local")[2]
    assert "no release has been published" in deployctl(*ROLL, "--yes")[2]
    world.publish(OLD, "first")
    code, out, _ = deployctl("release", "list", "--env", "local", "--json")
    (row,) = json.loads(out)
    assert code == 0 and (row["id"], row["label"], row["nodes"]) == (OLD, "first", 2)


def test_without_a_local_cloud_it_says_how_to_get_one(
    deployctl: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLUICE_LOCAL_DIR", str(tmp_path))
    code, _, err = deployctl("fleet", "status", "--env", "local")
    assert code == 1 and "deployctl local up" in err
    code, _, err = deployctl("fleet", "status", "--env", "nowhere")
    assert code == 2 and "there is no environment 'nowhere'" in err


def test_without_credentials_it_says_so(deployctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    before = dict(os.environ)
    code, _, err = deployctl("fleet", "status", "--env", "prod")
    os.environ.clear()
    os.environ.update(before)
    assert code == 1 and "credentials" in err


def test_a_roll_whose_driver_lives_is_not_taken_over_and_one_whose_driver_died_is(world: World, deployctl: Run) -> None:
    # Given a roll that another machine drives
    world.publish(NEW)
    assert deployctl(*ROLL, "--pool", "cpu", "--plan")[0] == 0
    with world.engine.begin() as c:
        roll = rollouts.create(
            c,
            role="worker",
            pool="cpu",
            release=NEW,
            strategy="replace",
            wish={"release": NEW, "before": OLD},
            steps=[("tag", {"group": "sluice-local-worker-cpu", "release": NEW, "before": OLD})],
            who="me@there",
        )
        assert rollouts.take(c, roll, "laptop pid 7")
    # Then it is not taken from it
    code, _, err = deployctl("roll", "--resume", "--env", "local")
    assert code == 3 and "roll 1 is carried on by laptop pid 7" in err and "`deployctl watch 1 --env local`" in err
    # When it was silent for long, it is carried on from here, to the very end: the node that the plan left out too
    with world.engine.begin() as c:
        c.execute(text("UPDATE rollout SET driver_at = driver_at - interval '1 minute'"))
    code, _, err = deployctl("roll", "--resume", str(roll), "--env", "local")
    assert code == 0, err
    assert "more steps: nodes of another release came meanwhile" in err
    assert world.serving()["cpu"] == [NEW]
    # And it can be taken back, by its number
    code, out, err = deployctl("roll", "--revert", str(roll), "--env", "local", "--yes", "--drive", "--json")
    assert code == 2 and f"no release '{OLD}'" in err  # it was never published
    world.publish(OLD)
    code, out, err = deployctl("roll", "--revert", str(roll), "--env", "local", "--yes", "--drive", "--json")
    assert code == 0, err
    assert [(r["release"], r["state"]) for r in json.loads(out)] == [(OLD, "succeeded")]
    assert world.serving()["cpu"] == [OLD] and world.tag("cpu") == OLD
    # And watching what has ended says how
    assert deployctl("watch", str(roll), "--env", "local")[0] == 0


def test_a_full_pool_is_refused_and_rolled_without_a_surge(world: World, deployctl: Run) -> None:
    world.publish(NEW)
    world.asg.update_auto_scaling_group(AutoScalingGroupName="sluice-local-worker-cpu", MaxSize=1)
    code, _, err = deployctl(*ROLL, "--pool", "cpu", "--yes")
    assert code == 3 and "at 1 of 1 instances: no room for 1 more" in err and "--surge 0" in err
    code, _, err = deployctl(*ROLL, "--pool", "cpu", "--surge", "0", "--yes", "--drive")
    assert code == 0, err
    assert world.serving()["cpu"] == [NEW]
    assert world.cloud.group("sluice-local-worker-cpu").desired == 1


def test_a_command_that_says_no_takes_the_release_back(world: World, deployctl: Run) -> None:
    world.publish(NEW)
    gate = ("--gate-command", "sh -c 'echo queue is too long >&2; exit 4'")
    code, _, err = deployctl(*ROLL, "--pool", "cpu", "--yes", "--drive", *gate)
    assert code == 1 and "exited with 4: queue is too long" in err
    assert world.serving()["cpu"] == [OLD] and world.tag("cpu") == OLD


def test_a_release_older_than_the_schema_is_refused(world: World, deployctl: Run) -> None:
    world.publish(NEW)
    with world.engine.begin() as c:
        c.execute(text("UPDATE alembic_version SET version_num = 'post_0009' WHERE version_num LIKE 'post%'"))
    code, _, err = deployctl(*ROLL, "--yes")
    assert code == 3 and f"release {NEW} is older than the schema" in err and "post_0009" in err


def test_a_new_template_is_rolled_out_and_a_bad_release_brings_the_old_one_back(world: World, deployctl: Run) -> None:
    # Given a group that launches from a newer template than its node came from
    world.publish(NEW)
    world.publish(OLD)
    boto3.client("ec2", "us-east-1").create_launch_template_version(
        LaunchTemplateName="roll", LaunchTemplateData={"ImageId": "ami-12c6146b", "InstanceType": "m7i.large"}
    )
    group = "sluice-local-worker-cpu"
    world.asg.update_auto_scaling_group(
        AutoScalingGroupName=group, LaunchTemplate={"LaunchTemplateName": "roll", "Version": "2"}
    )
    # When a roll fails
    code, _, _ = deployctl(*ROLL, "--pool", "cpu", "--release", NEW, "--yes", "--drive", "--gate-command", "false")
    # Then new instances come from the old template again
    assert code == 1
    found = world.cloud.group(group)
    assert (found.release, found.template) == (OLD, "1")
    # And when the template alone is new, that is a reason to roll
    world.asg.update_auto_scaling_group(
        AutoScalingGroupName=group, LaunchTemplate={"LaunchTemplateName": "roll", "Version": "2"}
    )
    code, _, err = deployctl(*ROLL, "--pool", "cpu", "--release", OLD, "--yes", "--drive")
    assert code == 0, err
    assert [i.template for i in world.cloud.group(group).instances if not i.leaving] == ["2"]
