"""A local cloud whose nodes are containers: the real boot path, from launch template to heartbeat."""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from sqlalchemy import Engine, text
from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host

from runner.deployctl import client, infra
from runner.deployctl.background import Background
from runner.deployctl.local_cloud import LocalCloud
from runner.deployctl.local_view import Step
from runner.localcloud import bridge, containers
from runner.localcloud.state import ENV
from runner.rollout import published
from runner.rollout import release as releases
from runner.settings import SluiceError
from runner.state import db, transitions
from runner.storage import Storage

ROOT = Path(__file__).parents[3]
HOME = ROOT / ".sluice" / "e2e"  # always the same: what a killed run has left is found, and removed
POOL = "default"
GROUP = f"sluice-{ENV}-worker-{POOL}"
SLOTS = 2
PATIENCE_SECONDS = 300.0  # for anything, on a machine that is busy with something else


class Machine(BaseBackend):
    """How testinfra runs commands on a node."""

    NAME = "sluice"

    def __init__(self, engine: containers.Engine, container: str) -> None:
        super().__init__(container)
        self.engine = engine
        self.container = container

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        line = self.get_command(command, *args)
        done = containers.execute(self.engine, self.container, ["/bin/sh", "-c", line])
        return CommandResult(self, done.returncode, line, done.stdout.encode(), done.stderr.encode())


class Fleet:
    """The local cloud, and what the tests ask of it."""

    def __init__(self, cloud: LocalCloud) -> None:
        self.cloud = cloud
        self.engine: Engine = db.connect(cloud.state.database_url)
        self.containers = containers.find()
        self.ec2 = boto3.client("ec2")
        self.autoscaling = boto3.client("autoscaling")

    # The machines

    def host(self, instance: str) -> Host:
        return Host(Machine(self.containers, f"{bridge.name_of(self.cloud.directory)}-{instance}"))

    def of_role(self, role: str) -> list[str]:
        """The instances of a role that are up, oldest first."""
        filters = [{"Name": "tag:Role", "Values": [role]}, {"Name": "instance-state-name", "Values": ["running"]}]
        found = [i for r in self.ec2.describe_instances(Filters=filters)["Reservations"] for i in r["Instances"]]
        return [i["InstanceId"] for i in sorted(found, key=lambda i: i["LaunchTime"])]

    def ready(self, role: str) -> list[str]:
        """The nodes of a role that take work and are heard."""
        return [
            str(row[0])
            for row in self.rows(
                "SELECT n.node_id FROM node n JOIN node_heartbeat h USING (node_id) WHERE n.role = :role"
                " AND n.state = 'ready' AND h.at > now() - interval '15 seconds' ORDER BY n.node_id",
                role=role,
            )
        ]

    def address(self, instance: str) -> str:
        found = self.ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
        return str(found["PrivateIpAddress"])

    def home(self, instance: str) -> Path:
        return self.cloud.directory / "nodes" / instance

    def console(self, instance: str) -> str:
        """Everything on its console, without the colours."""
        path = self.home(instance) / "log" / "console.log"
        said = path.read_text(errors="replace") if path.exists() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", said)

    def said(self, instance: str) -> str:
        """What whoever looks after the machine has written down."""
        return (self.home(instance) / "console.log").read_text()

    def reboot(self, instance: str) -> None:
        """Pull the plug and put it back."""
        url = f"http://127.0.0.1:{self.cloud.state.imds_port}/admin/{instance}/reboot"
        urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=30).close()

    def tag(self, instance: str, key: str) -> str:
        filters = [{"Name": "resource-id", "Values": [instance]}, {"Name": "key", "Values": [key]}]
        found = self.ec2.describe_tags(Filters=filters)["Tags"]
        return str(found[0]["Value"]) if found else ""

    def tag_group(self, release: str) -> None:
        """Which release the workers to come will run."""
        tag = {"ResourceId": GROUP, "ResourceType": "auto-scaling-group", "Key": "Release", "Value": release}
        self.autoscaling.create_or_update_tags(Tags=[{**tag, "PropagateAtLaunch": True}])

    def lifecycle(self, instance: str) -> str:
        found = self.autoscaling.describe_auto_scaling_instances(InstanceIds=[instance])["AutoScalingInstances"]
        return str(found[0]["LifecycleState"]) if found else ""

    def publish(self, release: str, archive: bytes) -> None:
        Storage.open(self.cloud.state.artifacts_url).put(releases.archive_key(release), archive)

    def next_release(self, folder: Path) -> str:
        """A release of this tree with one line more, published."""
        left_out = shutil.ignore_patterns(".*", "tests", "docs", "terraform", "__pycache__")
        tree = shutil.copytree(ROOT, folder / "tree", ignore=left_out)
        with (tree / "runner/__init__.py").open("a") as file:
            file.write("# the next release\n")
        cloud = LocalCloud(HOME, root=tree, nodes="containers")
        built = cloud.release("next")
        cloud.publish(built)
        return built.id

    def size(self, wanted: int) -> None:
        """How many workers there shall be."""
        self.autoscaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=wanted)

    def members(self) -> list[str]:
        (group,) = self.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])["AutoScalingGroups"]
        return [i["InstanceId"] for i in group["Instances"]]

    # The database

    def rows(self, statement: str, **values: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(statement), values))

    def one(self, statement: str, **values: Any) -> Any:
        found = self.rows(statement, **values)
        return found[0][0] if found else None

    def start(self, dag: str, **params: Any) -> int:
        with self.engine.begin() as connection:
            run = transitions.create_run(connection, dag, dt.datetime.now(dt.UTC), params=params)
        assert run is not None
        return run

    def nap(self, seconds: float) -> tuple[int, str]:
        """A task that runs so long: its run, and the node that runs it."""
        run = self.start("naps", seconds=seconds)
        node = self.eventually(lambda: self.node_of(run), "a nap runs")
        return run, str(node)

    def open_gate(self, gate: str) -> None:
        """Let the tasks go that hold a slot until then."""
        Storage.open(self.cloud.state.storage_url).put(f"files/nodes/{gate}", b"")

    def node_of(self, run: int) -> str | None:
        return self.one("SELECT node_id FROM task_instance WHERE run_id = :run AND state = 'running'", run=run)

    def node_state(self, node: str) -> str:
        return str(self.one("SELECT state FROM node WHERE node_id = :n", n=node))

    def state(self, run: int) -> str:
        return str(self.one("SELECT state FROM dag_run WHERE id = :run", run=run))

    def history(self, run: int) -> list[tuple[str, int | None, str | None]]:
        """What happened to the tasks of a run: (state, attempt, node), in order."""
        found = self.rows(
            "SELECT state, attempt, node_id FROM event WHERE run_id = :run AND kind = 'task' ORDER BY id", run=run
        )
        return [tuple(row) for row in found]

    # Patience

    def eventually(self, check: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
        """Wait until a check is true and return its value; for ever is `seconds`."""
        deadline = time.monotonic() + seconds
        while not (value := check()):
            assert time.monotonic() < deadline, f"did not happen within {seconds:g} s: {what}"
            time.sleep(0.5)
        return value


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    """Terraform's environment `local`, applied from nothing; taken away again whatever happens."""
    LocalCloud(HOME, root=ROOT).down()
    cloud = LocalCloud(HOME, root=ROOT, nodes="containers", on_step=_say)
    found = None
    try:
        _bring_up(cloud)
        found = Fleet(cloud)
        yield found
    finally:
        if found is not None:
            found.engine.dispose()
        cloud.down()


@pytest.fixture(autouse=True)
def at_home(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in the environment of who operates the fleet."""
    for name, value in fleet.cloud.environ().items():
        monkeypatch.setenv(name, value)


def _bring_up(cloud: LocalCloud) -> None:
    """As an environment comes up for the first time, with the smallest fleet in which everything is there once.

    Nobody makes the schema or writes the release down: the first scheduler does.
    """
    cloud.directory.mkdir(parents=True)
    cloud.start_network()
    built: Background[releases.BuiltRelease] = Background(cloud.first_release)
    cloud.node_image()
    cloud.start_engines()
    cloud.start_aws()
    cloud.start_machines()
    cloud.bootstrap()
    cloud.apply("network")
    built.wait()
    data = cloud.apply_in_background("data")
    uploaded = Background(lambda: _upload(cloud, built))
    pool = {"workers": 2, "max_workers": 4, "slots": SLOTS, "drain_seconds": 600}
    fleet = {"web": {"nodes": 1}, "schedulers": {"nodes": 2}, "pools": {POOL: pool}, "boot_seconds": 1800}
    cloud.apply("control", "workers", **fleet)
    uploaded.wait()
    _wait_for_schema(cloud)
    cloud.wait_for_nodes(1800)
    data.wait()
    with client.connect(ENV) as found:
        found.pipelines().push(ROOT / "tests/e2e/nodes/pipelines/nodes", who="e2e")


def _upload(cloud: LocalCloud, built: Background[releases.BuiltRelease]) -> None:
    """As soon as the data stack has made the bucket."""
    release, storage = built.wait(), Storage.open(cloud.state.artifacts_url)
    deadline = time.monotonic() + 600
    while True:
        try:
            storage.check()
            break
        except SluiceError:
            assert time.monotonic() < deadline, "the artifacts bucket is not there"
            time.sleep(0.3)
    published.upload(release, storage)


def _wait_for_schema(cloud: LocalCloud) -> None:
    engine = db.connect(cloud.state.database_url, pool_size=1)
    deadline = time.monotonic() + 1800
    while True:
        with engine.connect() as connection:
            if not db.empty(connection):
                break
        assert time.monotonic() < deadline, "no scheduler has made the schema"
        time.sleep(0.5)
    engine.dispose()


def launch_monitoring(fleet: Fleet) -> str:
    """A monitoring host beside Terraform's: without its volume, and without Grafana, whose package is elsewhere.

    It learns whom to watch from files: the discovery in Prometheus asks the real AWS.
    """
    workers = fleet.of_role("worker")
    (group,) = fleet.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])["AutoScalingGroups"]
    state = fleet.cloud.state
    settings = {"AWS_REGION": state.region, "SLUICE_ENV": ENV, "SLUICE_ROLE": "monitoring"}
    settings["SLUICE_ARTIFACTS_URL"] = state.artifacts_url
    own = {"grafana_wanted": False, "prometheus_discovery": "file", "prometheus_scrape_interval": "5s"}
    files = {
        "/etc/sluice/node.env": "".join(f"{k}={v}\n" for k, v in settings.items()),
        "/etc/sluice/ansible.yml": json.dumps(own),
        "/etc/prometheus/targets/worker.json": json.dumps([{"targets": [fleet.address(w) for w in workers]}]),
        "/opt/sluice/boot": (ROOT / "terraform/modules/boot/boot.py").read_text(),
    }
    written = [{"path": path, "content": content, "permissions": "0755"} for path, content in files.items()]
    tags = {"Name": "monitoring", "Role": "monitoring", "Env": ENV, "Release": state.release}
    launched = fleet.ec2.run_instances(
        ImageId="ami-12c6146b",
        InstanceType="m7i.large",
        MinCount=1,
        MaxCount=1,
        SubnetId=group["VPCZoneIdentifier"].split(",")[0],
        UserData="#cloud-config\n" + json.dumps({"write_files": written, "runcmd": [["/opt/sluice/boot"]]}),
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": k, "Value": v} for k, v in tags.items()]}],
    )
    return str(launched["Instances"][0]["InstanceId"])


def destroy(cloud: LocalCloud) -> None:
    """Everything that Terraform has made."""
    infra.destroy(ENV, allow_destroy=True, environ=cloud.environ(), on_event=lambda event: None)


def _say(step: Step) -> None:
    if step.done or step.failed:
        print(f"{'✗' if step.failed else '✓'} {step.name:<16} {step.text} ({step.seconds:.0f} s)", flush=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """The journal of every machine, where a test has failed."""
    report = yield
    fleet = getattr(item, "funcargs", {}).get("fleet")
    if report.failed and isinstance(fleet, Fleet):
        for home in sorted((fleet.cloud.directory / "nodes").iterdir()):
            if "power off" in (home / "console.log").read_text():
                continue
            said = fleet.host(home.name).run(
                "systemctl --failed --no-legend; journalctl --no-pager -n 60 -o short-precise"
            )
            report.sections.append((f"journal of {home.name}", said.stdout + said.stderr))
    return report
