"""One emulated AWS for these tests. Lifecycle hooks time out 100 times faster, threads switch all the time."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

CLOCK_RATE = 100
# As `python -m runner.localcloud.aws`, but with the interpreter looking for races.
START = "import sys; sys.setswitchinterval(1e-6); from runner.localcloud.aws.__main__ import main; main()"

Clients = Callable[[str], Any]


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("aws") / "output"
    argv = [sys.executable, "-c", START, "--port", str(port), "--clock-rate", str(CLOCK_RATE)]
    with log.open("wb") as output:
        server = subprocess.Popen(argv, stdout=output, stderr=output, env=os.environ)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_ready(url, server, log)
        yield url
    finally:
        server.terminate()
        assert server.wait(5) == 0


def wait_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/_sluice/ready", timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise AssertionError(f"the server did not come up: {log.read_text()}")


@pytest.fixture(scope="session")
def clients(endpoint: str) -> Clients:
    session = boto3.session.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")
    config = Config(retries={"max_attempts": 1}, max_pool_connections=20)
    return lambda service: session.client(service, endpoint_url=endpoint, config=config)


_numbers = itertools.count()


@pytest.fixture
def name() -> str:
    """A name nothing else in this server has."""
    return f"test{next(_numbers)}"


@pytest.fixture(scope="session")
def subnets(clients: Clients) -> list[str]:
    """Three subnets in three zones."""
    ec2 = clients("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    return [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.9.{i}.0/24", AvailabilityZone=f"us-east-1{zone}")["Subnet"][
            "SubnetId"
        ]
        for i, zone in enumerate("abc")
    ]
