"""The private network of container nodes: a bridge that is the VPC, on which a machine has its EC2 address.

The host has the last address of it, where the engines, the AWS API and the metadata service listen. There is no way
out: a node reaches the host and the other nodes, and no package index.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import subprocess
from pathlib import Path
from typing import Any

from runner.settings import SluiceError

_FIRST, _LAST = 64, 127  # 10.64.0.0/16 … 10.127.0.0/16: not where home networks, Docker and Podman are


def name_of(directory: Path) -> str:
    """The bridge of the local cloud in this directory. An interface's name has 15 characters."""
    return f"sluice-{hashlib.sha256(str(directory).encode()).hexdigest()[:8]}"


def address_in(cidr: str) -> str:
    """The host's own address in the VPC: the last one, which no subnet of stacks/network covers."""
    return str(ipaddress.ip_network(cidr)[-2])


def free_cidr() -> str:
    """A /16 that this host has no route into. Raises SluiceError if all are taken."""
    routes: list[dict[str, Any]] = json.loads(_ip("-json", "-4", "route", "show", "table", "all"))
    known = [n for r in routes if (n := _network(str(r.get("dst", "")))) is not None and n.prefixlen]
    for number in range(_FIRST, _LAST + 1):
        wanted = ipaddress.ip_network(f"10.{number}.0.0/16")
        if not any(wanted.overlaps(k) for k in known):
            return str(wanted)
    raise SluiceError(f"no free network between 10.{_FIRST}.0.0/16 and 10.{_LAST}.0.0/16 on this host")


def create(name: str, cidr: str) -> None:
    """Make the bridge with the host's address on it; one that is there is taken as it is."""
    if not (Path("/sys/class/net") / name).exists():
        _ip("link", "add", name, "type", "bridge")
    prefix = ipaddress.ip_network(cidr).prefixlen
    _ip("address", "replace", f"{address_in(cidr)}/{prefix}", "dev", name)
    _ip("link", "set", name, "up")


def remove(name: str) -> bool:
    """Take the bridge away; False if there was none."""
    if not (Path("/sys/class/net") / name).exists():
        return False
    _ip("link", "delete", name)
    return True


def plug(name: str, cidr: str, instance_id: str, pid: int, address: str, hardware: str) -> None:
    """Give the network namespace of this process a cable to the bridge, with this private and hardware address.

    The cable goes with the namespace. Raises SluiceError if the process has ended meanwhile.
    """
    outer = f"vm{hashlib.sha256(f'{name} {instance_id}'.encode()).hexdigest()[:12]}"
    if (Path("/sys/class/net") / outer).exists():
        _ip("link", "delete", outer)
    _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "address", hardware, "netns", str(pid))
    _ip("link", "set", outer, "master", name, "up")
    prefix = ipaddress.ip_network(cidr).prefixlen
    inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
    _run([*inside, "address", "add", f"{address}/{prefix}", "dev", "eth0"])
    _run([*inside, "link", "set", "eth0", "up"])


def plugged(pid: int) -> bool:
    """Whether the network namespace of this process has its cable."""
    with_cable = subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "link", "show", "eth0"], capture_output=True, check=False
    )
    return with_cable.returncode == 0


def _network(text: str) -> ipaddress.IPv4Network | None:
    try:
        return ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        return None  # "default", which leads everywhere and says nothing


def _ip(*args: str) -> str:
    return _run(["ip", *args])


def _run(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    except OSError as e:
        raise SluiceError(
            f"{argv[0]} cannot be run: {e.strerror or e}", "apt-get install iproute2 util-linux"
        ) from None
    if done.returncode != 0:
        raise SluiceError(f"{' '.join(argv)}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    return done.stdout
