"""One EC2 instance as a container: systemd is its first process, and cloud-init boots it from the metadata service."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from runner.localcloud import bridge, containers
from runner.localcloud import state as local_state
from runner.localcloud.cloud import Cloud
from runner.localcloud.containers import Container, Engine
from runner.localcloud.metadata import hardware_address
from runner.localcloud.node import OFF, Host, Node, _Interrupted
from runner.settings import SluiceError
from runner.telemetry.alive import birth

_LOOK_SECONDS = 0.5
_TRY_AGAIN_SECONDS = 5.0
# Lines and not a dump: what decides whether cloud-init runs at all is a shell script that reads this by lines.
_CLOUD_INIT = """datasource_list: [Ec2]
datasource: {{Ec2: {{metadata_urls: ["{imds_url}"], strict_id: false, max_wait: 300, timeout: 20}}}}
"""


@dataclass(frozen=True)
class Yard:
    """What all containers of one local cloud share."""

    engine: Engine
    image: str
    imds_url: str
    cidr: str
    bridge: str

    def name(self, instance_id: str) -> str:
        """The container of an instance: two local clouds may hold instances of one id."""
        return f"{self.bridge}-{instance_id}"


class ContainerNode(Node):
    """A machine that is looked after like a Node: power_on, power_off, reboot, detach."""

    def __init__(self, instance_id: str, host: Host, cloud: Cloud, yard: Yard) -> None:
        super().__init__(instance_id, host, cloud)
        self.yard = yard
        self.container = yard.name(instance_id)

    def power_off(self, why: str) -> None:
        """Pull the plug. The container of an instance that was only stopped is kept, with what is on its disk."""
        self.detach()
        if why.startswith("stop"):
            self.yard.engine.run("kill", self.container, check=False)
        else:
            self.yard.engine.remove(self.container)
        self.say(f"{OFF}: {why}")

    def _run(self) -> None:
        while not self._off.is_set():
            self._reboot.clear()
            self._wake.clear()
            if self._off.is_set():
                return
            try:
                pid, born = self._start()
                while birth(pid) == born:
                    self._pause(_LOOK_SECONDS)
                self.say("the machine has gone down by itself; EC2 says it runs: powering it on again")
            except _Interrupted:
                if self._reboot.is_set() and not self._off.is_set():
                    self.say("reboot: the plug is pulled")
                    self.yard.engine.run("kill", self.container, check=False)
            except Exception as e:  # whatever happens to one machine must not reach the others
                said = e.message if isinstance(e, SluiceError) else f"{type(e).__name__}: {e}"
                self.say(f"error: {said}; trying again in {_TRY_AGAIN_SECONDS:g} s")
                self._wake.wait(_TRY_AGAIN_SECONDS)

    def _start(self) -> tuple[int, str]:
        """Make the container run, whatever it is doing now; its first process and when that was born."""
        engine = self.yard.engine
        found = engine.inspect(self.container)
        if found is not None and found["Status"] == "running" and bridge.plugged(int(found["Pid"])):
            self.say("adopted: it was running already")
        else:
            if found is None:
                self.say(f"power on: instance {self.id} at {self._address()}")
                engine.run(*containers.create_argv(engine, self._container()))
            elif found["Status"] != "running":
                self.say(f"power on again at {self._address()}")
            if engine.name == "podman":
                # Namespaces before the first process: cloud-init never sees a machine without a network. Docker cannot,
                # and there it asks again a moment later.
                engine.run("init", self.container, check=False)
                self._plug(required=False)
            engine.run("start", self.container)
            self._plug()
        pid = self._pid()
        born = birth(pid)
        if born is None:
            raise SluiceError("the container has ended at once")
        return pid, born

    def _pid(self) -> int:
        """The container's first process; 0 if there is none."""
        return int((self.yard.engine.inspect(self.container) or {"Pid": 0})["Pid"])

    def _plug(self, *, required: bool = True) -> None:
        """Give the container its cable, unless it has one."""
        pid, address = self._pid(), self._address()
        if not pid and required:
            raise SluiceError("the container has ended at once")
        if pid and not bridge.plugged(pid):
            bridge.plug(self.yard.bridge, self.yard.cidr, self.id, pid, address, hardware_address(address))

    def _address(self) -> str:
        instance = self.cloud.get(self.id)
        if instance is None or not instance.private_ip:
            raise SluiceError(f"{self.id} has no private address")
        return instance.private_ip

    def _container(self) -> Container:
        """The container, with what an image on EC2 would know by itself written down for it."""
        for name in ("log", "journal"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        imds = self.yard.imds_url
        (self.home / "cloud.cfg").write_text(_CLOUD_INIT.format(imds_url=imds))
        environment = local_state.load(self.host.directory).machine_environment(imds)
        # Every service inherits it: this is all the difference between a machine here and one on AWS.
        assignments = " ".join(f'"{name}={value}"' for name, value in environment.items())
        (self.home / "environment.conf").write_text(f"[Manager]\nDefaultEnvironment={assignments}\n")
        return Container(
            name=self.container,
            hostname=f"ip-{self._address().replace('.', '-')}",
            image=self.yard.image,
            directory=self.host.directory,
            console=self.home / "log" / "console.log",
            mounts={
                self.home / "cloud.cfg": "/etc/cloud/cloud.cfg.d/99-local-cloud.cfg:ro",
                self.home / "environment.conf": "/etc/systemd/system.conf.d/50-local-cloud.conf:ro",
                self.home / "journal": "/var/log/journal",
            },
        )


def remove_all(directory: Path, engine: Engine, keep: Collection[str] = ()) -> list[str]:
    """Remove the containers of a local cloud but for those named; returns their names."""
    found = [name for name in engine.containers(directory) if name not in keep]
    engine.remove(*found)
    return found
