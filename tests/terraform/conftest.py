"""The real stacks, applied by the real terraform to an emulated AWS, in a copy of the tree."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from runner.deployctl import binary

SOURCE = Path(__file__).parents[2] / "terraform"
ACCOUNT = "123456789012"
BUCKET = f"sluice-local-state-{ACCOUNT}"

Clients = Callable[[str], Any]


@dataclass
class Terraform:
    """Runs terraform on the stacks of the environment `local`."""

    tree: Path
    environ: dict[str, str]

    def __call__(self, stack: str, command: str, *options: str, ok: tuple[int, ...] = (0,)) -> tuple[int, str]:
        """Exit status, and what it printed. Any status not in `ok` fails the test."""
        argv = [str(binary.find()), f"-chdir={self.tree / 'stacks' / stack}", command, "-no-color", *options]
        if command == "plan":
            values = [self.tree / "envs" / "local" / name for name in ("common.tfvars", f"{stack}.tfvars")]
            argv += ["-input=false", *(f"-var-file={path}" for path in values)]
        environ = {**self.environ, "TF_DATA_DIR": str(self.tree / "data" / stack)}
        done = subprocess.run(argv, env=environ, capture_output=True, text=True)
        assert done.returncode in ok, done.stdout + done.stderr
        return done.returncode, done.stdout + done.stderr

    def init(self, stack: str) -> None:
        backend = {"bucket": BUCKET, "key": f"local/{stack}.tfstate", "region": "us-east-1"}
        self(stack, "init", "-input=false", *(f"-backend-config={k}={v}" for k, v in backend.items()))

    def plan(self, stack: str, *options: str) -> tuple[dict[str, list[str]], str]:
        """What would be done (actions by resource address, no-ops left out), and the file to apply."""
        path = str(self.tree / f"plan-{stack}")
        self(stack, "plan", f"-out={path}", *options)
        shown = json.loads(self(stack, "show", "-json", path)[1])
        actions = {r["address"]: r["change"]["actions"] for r in shown["resource_changes"]}
        return {address: action for address, action in actions.items() if action != ["no-op"]}, path


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, "-m", "runner.localcloud.aws", "--port", str(port)])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{url}/_sluice/ready", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < deadline and server.poll() is None, "the emulated AWS did not come up"
                time.sleep(0.05)
        yield url
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="session")
def clients(endpoint: str) -> Clients:
    session = boto3.session.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")
    return lambda service: session.client(service, endpoint_url=endpoint)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_of_tree(tmp_path / "terraform")


def copy_of_tree(target: Path) -> Path:
    return Path(shutil.copytree(SOURCE, target, ignore=shutil.ignore_patterns(".terraform")))


@pytest.fixture(scope="session")
def terraform(endpoint: str, clients: Clients, tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    """Network and workers are applied."""
    clients("s3").create_bucket(Bucket=BUCKET)
    environ = binary.child_environ(os.environ) | {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
        "TF_VAR_engines": json.dumps(
            {"database_url": "postgresql://host:5432/db", "broker_url": "redis://host:6379/0"}
        ),
        "TF_VAR_release": "0123456789ab",
    }
    run = Terraform(copy_of_tree(tmp_path_factory.mktemp("terraform") / "tree"), environ)
    for stack in ("network", "workers"):
        run.init(stack)
        run(stack, "plan", f"-out={run.tree / stack}")
        run(stack, "apply", str(run.tree / stack))
    return run
