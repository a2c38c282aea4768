"""An AWS for one scenario: the emulated API, its machines as processes, one pool of workers, and releases to roll."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import signal
import sys
import threading
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3

import runner
from runner.deployctl.watch import line
from runner.localcloud import engines, machines, node, process
from runner.localcloud import state as local_state
from runner.localcloud.state import LocalState
from runner.rollout import release as releases
from runner.rollout.cloud import Cloud as Groups
from runner.rollout.cloud import group_name
from runner.rollout.facts import Facts, Group
from runner.rollout.fleet import LiveFleet
from runner.rollout.plan import Wish
from runner.settings import Settings
from runner.state import rollouts
from runner.storage import Storage
from tests import drivers

from .fleet import Fleet

POOL = "default"
HOOK_SECONDS = 30  # the least there is; an agent that says nothing for two thirds of it has lost its hook
CLOCK_RATE = "1.5"
# What no worker needs; compiling it on every machine takes time.
_LEFT_OUT = ("runner/localcloud/aws/", "runner/examples/")


class Cloud:
    """Started with its first nodes up; `with` ends it with everything on it."""

    def __init__(self, f: Fleet, *, nodes: int = 1, maximum: int = 4, slots: int = 2) -> None:
        self.f = f
        self.directory = f.directory / "cloud"
        self.slots = slots
        self.state = LocalState(
            aws_endpoint=f"http://127.0.0.1:{engines.free_port()}", database_url=f.url, broker_url=f.engines.valkey.url
        )
        self._aws = self.directory / "aws.pid"
        self._machines = self.directory / "machines.pid"
        self._load: threading.Thread | None = None
        self._enough = threading.Event()
        self._bounds = (nodes, maximum)

    # --- coming and going -----------------------------------------------------------------------------------------

    def __enter__(self) -> Cloud:
        local_state.save(self.state, self.directory)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "SLUICE_"))}
        argv = [sys.executable, "-m", "runner.localcloud.aws", "--port", self.state.aws_endpoint.rpartition(":")[2]]
        argv += ["--clock-rate", CLOCK_RATE]
        process.start(argv, env, self.directory / "aws.log", self._aws)
        self.f.wait(self._answers, "the AWS API answers")
        # Boto3 reads the endpoint from the environment, and so do the schedulers' and this process's drivers.
        os.environ.update({k: v for k, v in self.state.environment().items() if k.startswith("AWS_")})
        self.asg: Any = boto3.client("autoscaling", self.state.region)
        self.ec2: Any = boto3.client("ec2", self.state.region)
        self.groups = Groups(self.state.region)
        self.artifacts = Storage.open(self.state.artifacts_url, region=self.state.region)
        boto3.client("s3", self.state.region).create_bucket(Bucket=self.state.artifacts_url.removeprefix("s3://"))
        self.settings = Settings(
            env="local", region=self.state.region, database_url=self.f.url, artifacts_url=self.state.artifacts_url
        )
        argv = [sys.executable, "-m", "runner.localcloud.machines", "--state-dir", str(self.directory)]
        process.start(argv, env, self.directory / "machines.log", self._machines)
        return self

    def __exit__(self, *_: object) -> None:
        self.quiet()
        with contextlib.suppress(Exception):
            self._tell()
        for pidfile in (self._machines, self._aws):
            running = process.read(pidfile)
            if running is not None:
                running.signal(signal.SIGKILL)
                process.wait_gone(running, 30)
        machines.kill_all(self.directory)
        for name in [n for n in os.environ if n.startswith("AWS_")]:
            del os.environ[name]

    def _tell(self) -> None:
        """What a watcher of the rolls would have seen, for who keeps the directory."""
        rows = self.f.all("SELECT * FROM event WHERE kind IN ('rollout', 'node') ORDER BY id")
        (self.directory / "rolls.log").write_text("".join(f"{line(row)}\n" for row in rows))

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.state.aws_endpoint}/_sluice/ready"):
            return True
        return False

    def schedulers(self, n: int, *, scaling: bool = False) -> None:
        """Schedulers that can drive rollouts, and with `scaling` also scale the pools."""
        env = {k: v for k, v in self.state.environment().items() if k.startswith(("AWS_", "SLUICE_ENV"))}
        env["SLUICE_ARTIFACTS_URL"] = self.state.artifacts_url
        for name in [f"s{i + 1}" for i in range(n)]:
            own = {**env, "SLUICE_INSTANCE_ID": name} if scaling else env
            self.f.registered(self.f.spawn("scheduler", name, **own))

    def pool(
        self,
        release: str,
        role: str = "worker",
        *,
        least: int = 0,
        tags: Mapping[str, str] | None = None,
        heartbeat_seconds: float = 0.3,
        hook_seconds: int = HOOK_SECONDS,
    ) -> None:
        """The group of a role, never smaller than `least`, with more tags, and its first nodes ready."""
        low, high = self._bounds
        name = group_name("local", role, POOL)
        variables = {
            "SLUICE_ROLE": role,
            "SLUICE_POOL": POOL if role == "worker" else role,
            "SLUICE_QUEUES": "default",
            "SLUICE_SLOTS": str(self.slots),
            "SLUICE_HEARTBEAT_SECONDS": str(heartbeat_seconds),
            "SLUICE_LEASE_SECONDS": str(self.f.lease),
            "SLUICE_DRAIN_SECONDS": "60",
            "SLUICE_ARTIFACTS_URL": self.f.engines.artifacts,  # where the bundles are
            "SLUICE_STORAGE_URL": f"file://{self.f.directory}/storage",
            "SLUICE_LEDGER": str(self.f.ledger),
        }
        lines = "".join(f"      {k}={v}\n" for k, v in variables.items())
        data = f"#cloud-config\nwrite_files:\n  - path: {node.NODE_ENV}\n    content: |\n{lines}"
        template = {"ImageId": "ami-12c6146b", "UserData": base64.b64encode(data.encode()).decode()}
        self.ec2.create_launch_template(LaunchTemplateName=role, LaunchTemplateData=template)
        hooks = [
            {
                "LifecycleHookName": hook,
                "LifecycleTransition": f"autoscaling:EC2_INSTANCE_{transition}",
                "HeartbeatTimeout": hook_seconds,
                "DefaultResult": "ABANDON",
            }
            for hook, transition in (("launch", "LAUNCHING"), ("terminate", "TERMINATING"))
        ]
        self.asg.create_auto_scaling_group(
            AutoScalingGroupName=name,
            MinSize=least,
            MaxSize=high,
            DesiredCapacity=low,
            AvailabilityZones=["us-east-1a"],
            LaunchTemplate={"LaunchTemplateName": role, "Version": "1"},
            Tags=[
                {"Key": key, "Value": value, "PropagateAtLaunch": True}
                for key, value in {"Release": release, **(tags or {})}.items()
            ],
            LifecycleHookSpecificationList=hooks,
        )
        self.f.wait(lambda: len(self.serving(role)) == low, f"the first {role} nodes are up", every=0.02 * low)

    def publish(self, label: str, patch: Mapping[str, str] | None = None) -> str:
        """A release of this source tree, with some files in another form; its id."""
        root = Path(runner.__file__).parents[1]
        wheel = io.BytesIO()
        with zipfile.ZipFile(wheel, "w") as z:
            for path in sorted((root / "runner").rglob("*")):
                name = path.relative_to(root).as_posix()
                wanted = "__pycache__" not in name and not name.startswith(_LEFT_OUT) and name not in (patch or {})
                if path.is_file() and wanted:
                    z.write(path, name)
            for name, content in (patch or {}).items():
                z.writestr(name, content)
        files = {"wheel/sluice-0-py3-none-any.whl": wheel.getvalue()}
        manifest = releases.describe(files, label, "")
        release = str(manifest["id"])
        path = self.directory / f"{release}.tar.gz"
        path.write_bytes(releases.pack(files, set()))
        self.artifacts.put(releases.archive_key(release), path)
        with self.f.engine.begin() as c:
            rollouts.add_release(
                c, release=release, label=label, git_commit="", url="", size=path.stat().st_size, who="chaos"
            )
        return release

    # --- work -----------------------------------------------------------------------------------------------------

    def load(self, dag: str = "wide", tasks: int = 30, **params: Any) -> None:
        """Keep so many tasks waiting or running until quiet()."""
        open_ = "SELECT count(*) FROM task_instance WHERE state NOT IN ('success', 'failed', 'skipped')"

        def feed() -> None:
            while not self._enough.wait(0.2):
                if self.f.one(open_) < tasks:
                    self.f.run(dag, **params)

        self._load = threading.Thread(target=feed, daemon=True)
        self._load.start()

    def quiet(self) -> None:
        self._enough.set()
        if self._load is not None:
            self._load.join(10)

    # --- looking --------------------------------------------------------------------------------------------------

    def group(self, role: str = "worker") -> Group:
        return self.groups.group(group_name("local", role, POOL))

    def facts(self, role: str = "worker") -> Facts:
        pool = POOL if role == "worker" else role
        return LiveFleet(self.f.engine, self.groups, self.settings, role, pool).facts()

    def serving(self, role: str = "worker") -> dict[str, str]:
        """Instance → release of the nodes that serve."""
        facts = self.facts(role)
        return {i: n.release for i in facts.serving() if (n := facts.node(i))}

    def launched(self) -> int:
        """How many instances there have ever been."""
        found = self.ec2.describe_instances()["Reservations"]
        return sum(len(r["Instances"]) for r in found)

    def expect(self, release: str, nodes: int, roll: int, state: str = "succeeded", role: str = "worker") -> None:
        """What the pool must have come to, and the rollout; anything else is a problem."""
        self.f.wait(
            lambda: len(self.serving(role)) == nodes and len(self.group(role).instances) == nodes,
            f"the {role} pool comes to rest",
            every=0.02 * nodes,
        )
        group, found = self.group(role), self.view(roll)
        if found.state != state:
            self.f.problems.append(f"roll {roll} is {found.state}, not {state}: {found.error}")
        if set(self.serving(role).values()) != {release}:
            self.f.problems.append(f"{self.serving(role)} serve, not only {release}")
        if (group.desired, group.release) != (nodes, release):
            self.f.problems.append(f"the group wants {group.desired} of {group.release}, not {nodes} of {release}")

    def view(self, roll: int) -> Any:
        with self.f.engine.connect() as c:
            return rollouts.get(c, roll)

    def step(self, roll: int) -> tuple[int, str, Mapping[str, Any]]:
        """The step under way: its number, its name and its arguments; 0 between two."""
        with self.f.engine.connect() as c:
            found = next((s for s in rollouts.steps(c, roll) if s.state == "running"), None)
        return (found.seq, found.action, found.args) if found else (0, "", {})

    # --- rolling --------------------------------------------------------------------------------------------------

    def file(self, wish: Wish, *, owner: str = "", role: str = "worker", after: Sequence[int] = ()) -> int:
        """A rollout of a role; with an owner no scheduler touches it before that one was silent for 15 s."""
        return drivers.file(self.f.engine, self.artifacts, self.facts(role), wish, owner=owner, after=after)

    def ended(self, roll: int) -> bool:
        return bool(self.view(roll).state != "running")

    def drive(self, roll: int, owner: str, die_at: int = 0) -> int:
        """Drive from a process of its own, which KILLs itself at its nth point; its pid."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.setpgid(0, 0)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            drivers.drive(self.f.url, self.settings, roll, owner, die_at)
            code = 0
        finally:
            os._exit(code)


@contextlib.contextmanager
def cloud(f: Fleet, **bounds: int) -> Iterator[Cloud]:
    with Cloud(f, **bounds) as c:
        yield c
