"""The machines of the local cloud: for every running EC2 instance a node, and the metadata service they ask.

A node is a directory with processes, or a container that boots like a machine (`nodes` of the local cloud's state).

`python -m runner.localcloud.machines` watches the emulated EC2. An instance that runs gets a directory and an agent,
one that is stopped or terminated is killed with everything on it. The supervisor may be stopped, killed and started
again at any time: nodes go on meanwhile and are adopted by their pid files.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from runner.localcloud import bridge, container_node, containers, image
from runner.localcloud import node as nodes
from runner.localcloud import state as local_state
from runner.localcloud.cloud import Cloud, Instance
from runner.localcloud.container_node import ContainerNode, Yard
from runner.localcloud.metadata import BridgeServer, Server
from runner.localcloud.node import Host, Node
from runner.localcloud.releases import Releases
from runner.settings import SluiceError

_QUIET_SECONDS = 15.0


class Machines:
    """Makes what runs on this machine agree with what runs in EC2; tick() is one look."""

    def __init__(self, directory: Path, agent_command: list[str] | None = None) -> None:
        self.directory = directory
        state = local_state.load(directory)
        if not state.aws_endpoint:
            raise SluiceError("the local cloud has no AWS API yet", "run `deployctl local up`")
        self.cloud = Cloud(state)
        self.bridge_server: BridgeServer | None = None
        self.server = self._serve(state.imds_port)
        local_state.update(directory, imds_port=self.server.port)
        self.host = Host(
            directory=directory,
            imds_url=f"http://127.0.0.1:{self.server.port}",
            releases=Releases(state, directory / "cache" / "releases"),
            agent_command=tuple(agent_command or nodes.AGENT_COMMAND),
        )
        self.nodes: dict[str, Node] = {}
        self.yard = self._yard(state) if state.nodes == "containers" else None
        self._cleaned = False

    def _serve(self, port: int) -> Server:
        """On the port of last time, which running agents know; a new one only if somebody else took it."""
        with contextlib.suppress(OSError):
            return Server(self.cloud, port, self.reboot)
        _say(f"port {port} is taken: agents that run already will not find their metadata")
        return Server(self.cloud, 0, self.reboot)

    def _yard(self, state: local_state.LocalState) -> Yard:
        engine = containers.find()
        # The port of last time, which running machines know.
        self.bridge_server = BridgeServer(self.server, state.address, state.bridge_port)
        self.bridge_server.serve()
        local_state.update(self.directory, bridge_port=int(self.bridge_server.server_address[1]))
        name = bridge.name_of(self.directory)
        return Yard(engine, image.ensure(engine, _say), self.bridge_server.url, state.cidr, name)

    def _make(self, instance_id: str) -> Node:
        if self.yard is not None:
            return ContainerNode(instance_id, self.host, self.cloud, self.yard)
        return Node(instance_id, self.host, self.cloud)

    def start(self) -> None:
        """Answer metadata requests; the first tick cleans up after machines that went away unseen."""
        self.server.serve()

    def _clean_up(self, instances: dict[str, Instance]) -> None:
        if self.yard is not None:
            known = {self.yard.name(i.id) for i in instances.values()}
            for gone in container_node.remove_all(self.directory, self.yard.engine, keep=known):
                _say(f"{gone}: gone while nobody looked, its container is removed")
            return
        home = self.directory / "nodes"
        for left in sorted(home.iterdir()) if home.is_dir() else []:
            instance = instances.get(left.name)
            if (instance is None or not instance.up) and nodes.kill(left):
                _say(f"{left.name}: gone while nobody looked, its processes are killed")

    def tick(self) -> bool:
        """One look at EC2; True if machines came or went.

        Raises botocore's errors: an API that does not answer says nothing about its machines.
        """
        instances = self.cloud.refresh()
        if not self._cleaned:
            self._clean_up(instances)
            self._cleaned = True
        up = {i.id for i in instances.values() if i.up}
        gone_or_new = self.nodes.keys() ^ up
        for gone in self.nodes.keys() - up:
            state = instances[gone].state if gone in instances else "terminated"
            _say(f"{gone}: {state}")
            self.nodes.pop(gone).power_off(state)
        for new in up - self.nodes.keys():
            tags = instances[new].tags
            _say(f"{new}: running, {tags.get('Name', 'no name')}")
            self.nodes[new] = self._make(new)
            self.nodes[new].power_on()
        for reclaimed in self.server.notices.due():
            _say(f"{reclaimed}: spot notice has run out")
            self.cloud.terminate(reclaimed)
        return bool(gone_or_new)

    def reboot(self, instance_id: str) -> bool:
        """Reboot a node; False if it is not up."""
        node = self.nodes.get(instance_id)
        if node is not None:
            node.reboot()
        return node is not None

    def close(self) -> None:
        """Stop watching. The nodes go on."""
        for server in (self.server, self.bridge_server):
            if server is not None:
                server.shutdown()
                server.server_close()
        for node in self.nodes.values():
            node.detach()


def run(machines: Machines, interval: float, stop: threading.Event) -> None:
    """Look every interval seconds until told to stop, at longer intervals while nothing happens."""
    failing = False
    quiet_since = time.monotonic()
    while not stop.is_set():
        began = time.monotonic()
        try:
            if machines.tick():
                quiet_since = began
            failing = False
        except (BotoCoreError, ClientError) as e:
            if not failing:
                _say(f"the AWS API does not answer: {e}")
            failing = True
        pause = interval if began - quiet_since < _QUIET_SECONDS else interval * 1.5
        stop.wait(max(0.02, pause - (time.monotonic() - began)))


def kill_all(directory: Path) -> int:
    """KILL all nodes of a local cloud; returns how many processes or containers. Stop the supervisor before."""
    state = local_state.find(directory)
    if state is not None and state.nodes == "containers":
        return len(container_node.remove_all(directory, containers.find()))
    home = directory / "nodes"
    return sum(nodes.kill(node) for node in sorted(home.iterdir())) if home.is_dir() else 0


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """The daemon."""
    parser = argparse.ArgumentParser(prog="python -m runner.localcloud.machines", description=__doc__)
    parser.add_argument("--state-dir", type=Path, default=None, help="state directory of the local cloud")
    parser.add_argument("--interval", type=float, default=0.3, help="seconds between two looks at EC2")
    parser.add_argument("--agent-command", default="", help="run this on every node instead of the agent")
    args = parser.parse_args(argv)
    directory = args.state_dir.absolute() if args.state_dir else local_state.directory()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        machines = Machines(directory, shlex.split(args.agent_command) or None)
    except SluiceError as e:
        print(f"error: {e.message}\nhint: {e.hint}", file=sys.stderr)
        return e.exit_code
    machines.start()
    run(machines, args.interval, stop)
    machines.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
