"""`deployctl release` as an operator types it, on an emulated AWS and a real database."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from sqlalchemy import Engine, text

from runner.localcloud import state as local_state
from runner.localcloud.state import LocalState
from runner.rollout.release import archive_key, manifest_key, signature_key
from runner.state import nodes
from tests.rollout import tiny

Run = Callable[..., tuple[int, str, str]]
LOCAL = ("--env", "local")


@pytest.fixture
def bucket(aws_endpoint: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The artifacts of a local cloud that consists of an emulated AWS and a database."""
    state = LocalState(aws_endpoint=aws_endpoint, database_url=database_url, broker_url="redis://127.0.0.1:1/0")
    local_state.save(state, tmp_path / "cloud")
    before = dict(os.environ)
    monkeypatch.setenv("SLUICE_LOCAL_DIR", str(tmp_path / "cloud"))
    os.environ.update(state.environment())
    bucket: Any = boto3.resource("s3", region_name="us-east-1").Bucket(state.artifacts_url.removeprefix("s3://"))
    bucket.create()
    yield bucket
    bucket.objects.delete()
    bucket.delete()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny.tree(tmp_path / "tree")


def build(deployctl: Run, root: Path, *words: str | Path) -> str:
    """The id of a release without wheels that is built and published."""
    code, out, err = deployctl("release", "build", "--root", root, "--no-wheels", *LOCAL, *words)
    assert code == 0, err
    return out.strip()


def keys(bucket: Any) -> list[str]:
    return sorted(o.key for o in bucket.objects.all())


def test_a_build_tells_what_it_made(root: Path, deployctl: Run) -> None:
    code, out, err = deployctl("release", "build", "--root", root, "--no-wheels", "--label", "first")
    assert code == 0 and "release " + out.strip() + " (first), 0.0 MB, for process nodes only: " in err
    code, out, err = deployctl("release", "build", "--root", root, "--python", "2.7")
    assert code == 2 and "python '2.7' is not a version nodes can run" in err


@pytest.fixture
def pool(bucket: Any) -> Iterator[None]:
    """A pool of no machines."""
    ec2: Any = boto3.client("ec2", "us-east-1")
    asg: Any = boto3.client("autoscaling", "us-east-1")
    ec2.create_launch_template(LaunchTemplateName="pool", LaunchTemplateData={"ImageId": "ami-12c6146b"})
    asg.create_auto_scaling_group(
        AutoScalingGroupName="sluice-local-worker-default",
        MinSize=0,
        MaxSize=1,
        DesiredCapacity=0,
        AvailabilityZones=["us-east-1a"],
        LaunchTemplate={"LaunchTemplateName": "pool", "Version": "1"},
        Tags=[{"Key": "Release", "Value": "0" * 12, "PropagateAtLaunch": True}],
    )
    yield
    asg.delete_auto_scaling_group(AutoScalingGroupName="sluice-local-worker-default", ForceDelete=True)
    ec2.delete_launch_template(LaunchTemplateName="pool")


@pytest.mark.usefixtures("pool")
def test_signed_published_and_rolled_only_where_the_key_is_trusted(
    bucket: Any, root: Path, tmp_path: Path, deployctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a key pair
    code, public, err = deployctl("release", "keygen", "--out", tmp_path / "a.key")
    assert code == 0 and (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    assert public.strip() in (tmp_path / "a.pub").read_text()
    assert deployctl("release", "keygen", "--out", tmp_path / "a.key")[0] == 2
    # When one release is signed and another is not
    signed = build(deployctl, root, "--sign", tmp_path / "a.key")
    unsigned = build(deployctl, root, "--label", "unsigned")
    assert keys(bucket) == sorted(
        [
            archive_key(signed),
            manifest_key(signed),
            signature_key(signed),
            archive_key(unsigned),
            manifest_key(unsigned),
        ]
    )
    # Then who trusts the key sees that, and takes nothing else
    monkeypatch.setenv("SLUICE_RELEASE_KEY", public.strip())
    assert json.loads(deployctl("release", "show", signed, *LOCAL, "--json")[1])["signed"] == "with a trusted key"
    for command in (("release", "show", unsigned), ("roll", "--workers", "--release", unsigned, "--yes")):
        code, _, err = deployctl(*command, *LOCAL)
        assert code == 3 and f"error: release {unsigned} is refused: it is not signed" in err
        assert len([line for line in err.splitlines() if line.startswith("error")]) == 1
    # Then neither is one that was changed on its way
    body = bucket.Object(manifest_key(signed)).get()["Body"].read()
    bucket.Object(manifest_key(signed)).put(Body=body.replace(b"wheel/", b"WHEEL/"))
    code, _, err = deployctl("roll", "--workers", "--release", signed, "--yes", *LOCAL)
    assert code == 3 and "its signature is not good: it was changed after it was signed" in err
    monkeypatch.setenv("SLUICE_RELEASE_KEY", "nonsense")
    assert deployctl("release", "show", signed, *LOCAL)[0] == 2


def test_show_and_diff(bucket: Any, root: Path, deployctl: Run) -> None:
    one = build(deployctl, root)
    (root / "systemd/runner-agent.service").write_text("[Unit]\nDescription=x\n")
    two = build(deployctl, root, "--label", "two")
    code, out, _ = deployctl("release", "show", "newest", *LOCAL)
    assert code == 0 and two in out and "process nodes only" in out and "sluice 1.2.3" in out
    shown = json.loads(deployctl("release", "show", one, *LOCAL, "--json")[1])
    assert (shown["id"], shown["packages"], shown["nodes"]) == (one, {"sluice": ["1.2.3"]}, [])
    rows = json.loads(deployctl("release", "diff", one, *LOCAL, "--json")[1])
    assert [r["what"] for r in rows] == ["systemd/runner-agent.service", "label"] and rows[1]["after"] == "two"
    assert "runner-agent.service" in deployctl("release", "diff", one, two, *LOCAL)[1]
    assert "hold the same" in deployctl("release", "diff", one, one, *LOCAL)[2]
    assert deployctl("release", "show", "nope", *LOCAL)[0] == 2


def test_prune_keeps_whatever_is_needed(bucket: Any, root: Path, engine: Engine, deployctl: Run) -> None:
    # Given six releases, oldest first
    made = [build(deployctl, root, "--label", str(i)) for i in range(6)]
    with engine.begin() as c:
        for age, release in enumerate(reversed(made)):  # built within one transaction's clock or not
            c.execute(
                text("UPDATE release SET created_at = now() - make_interval(hours => :age) WHERE id = :id"),
                {"age": age, "id": release},
            )
        # of which one is run by a node, after another
        info = nodes.NodeInfo("n1", "worker", "default", made[3], "boot", slots=1, queues=("default",))
        nodes.register(c, info)
        c.execute(
            text("INSERT INTO deploy (kind, target, before, after, who) VALUES ('release', 'worker/p', :a, :b, 'me')"),
            {"a": made[0], "b": made[3]},
        )
    # When it is planned, nothing goes
    code, out, err = deployctl("release", "prune", *LOCAL, "--keep", "1", "--plan")
    assert code == 0 and "3 release(s) would be deleted" in err and len(keys(bucket)) == 12
    assert "1 node runs it" in out and f"ran before {made[3]}" in out and "one of the newest 1" in out
    # When it is done without anybody to ask, it is refused
    assert deployctl("release", "prune", *LOCAL, "--keep", "1")[0] == 2 and len(keys(bucket)) == 12
    # Then, when it is done, those stay that something needs
    code, out, _ = deployctl("release", "prune", *LOCAL, "--keep", "1", "--json")
    told = json.loads(out)
    assert set(told["removed"]) == {made[1], made[2], made[4]} and told["bytes"] > 0
    listed = json.loads(deployctl("release", "list", *LOCAL, "--json")[1])
    assert {r["id"] for r in listed} == {made[0], made[3], made[5]}
    assert {k.split("/")[1].split(".")[0] for k in keys(bucket)} == {made[0], made[3], made[5]}
    assert "nothing to delete" in deployctl("release", "prune", *LOCAL, "--keep", "1", "--yes")[2]


def test_prune_asks_the_cloud_as_well(bucket: Any, root: Path, deployctl: Run) -> None:
    made = [build(deployctl, root, "--label", str(i)) for i in range(3)]
    # Given a group whose tag names the first, and a machine that booted with it
    ec2: Any = boto3.client("ec2", "us-east-1")
    tags = [{"Key": "Env", "Value": "local"}, {"Key": "Release", "Value": made[0]}]
    reply = ec2.run_instances(
        ImageId="ami-12c6146b",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    (instance,) = [i["InstanceId"] for i in reply["Instances"]]
    told = json.loads(deployctl("release", "prune", *LOCAL, "--keep", "1", "--plan", "--json")[1])
    assert told["kept"][made[0]] == f"machine {instance}"
    # When it is gone, nothing holds the release any more
    ec2.terminate_instances(InstanceIds=[instance])
    told = json.loads(deployctl("release", "prune", *LOCAL, "--keep", "1", "--plan", "--json")[1])
    assert made[0] in told["removed"] and not told["done"]
