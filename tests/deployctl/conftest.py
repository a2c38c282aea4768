"""A throw-away Terraform tree of built-in resources, and the emulated AWS that keeps its state."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.deployctl import infra, main

ACCOUNT = "123456789012"

_STACK = """
terraform {
  backend "s3" {}
}
variable "env" { type = string }
variable "region" { type = string }
variable "account_id" { type = string }
variable "state_bucket" { type = string }
variable "size" {
  type    = number
  default = 2
  validation {
    condition     = var.size >= 0
    error_message = "size must not be below zero, it is ${var.size}."
  }
}
variable "wait" {
  type    = number
  default = 0
}
variable "engines" {
  type    = object({ database_url = string, broker_url = string })
  default = null
}
variable "broken" {
  type    = bool
  default = false
}
resource "terraform_data" "one" {
  count = var.size
  input = count.index
}
resource "terraform_data" "size" {
  input = var.size
}
resource "terraform_data" "slow" {
  count = var.wait > 0 ? 1 : 0
  provisioner "local-exec" { command = "sleep ${var.wait}" }
}
resource "terraform_data" "broken" {
  count = var.broken ? 1 : 0
  provisioner "local-exec" { command = "echo it broke; exit 3" }
}
output "size" { value = var.size }
output "database" { value = var.engines == null ? "" : var.engines.database_url }
"""

_READS_NETWORK = """
data "terraform_remote_state" "network" {
  backend = "s3"
  config = {
    bucket = var.state_bucket
    key    = "${var.env}/network.tfstate"
    region = var.region
  }
}
output "network_size" { value = data.terraform_remote_state.network.outputs.size }
"""

_WORKERS_ONLY = """
variable "bad_workers" {
  type    = bool
  default = false
}
resource "terraform_data" "bad_workers" {
  count = var.bad_workers ? 1 : 0
  provisioner "local-exec" { command = "echo it broke; exit 3" }
}
"""


@pytest.fixture(scope="session")
def aws_endpoint() -> Iterator[str]:
    """The local cloud's AWS API, serving on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "runner.localcloud.aws", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "the emulated AWS did not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def aws_environ(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point this process and its children at the emulated AWS."""
    for name, value in {
        "AWS_ENDPOINT_URL": aws_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A Terraform tree with the four stacks, made of `terraform_data`, and an environment named after the test."""
    root = tmp_path / "terraform"
    folder = root / "envs" / "tiny"
    folder.mkdir(parents=True)
    bucket = f"state-{abs(hash(request.node.nodeid)) % 10**10}-{os.getpid()}"
    (folder / "common.tfvars").write_text(
        f'env = "tiny"\nregion = "us-east-1"\naccount_id = "{ACCOUNT}" # ours\nstate_bucket = "{bucket}"\n'
    )
    for name in ("network", "data", "control", "workers"):
        stack = root / "stacks" / name
        stack.mkdir(parents=True)
        text = _STACK + (_READS_NETWORK if name != "network" else "") + (_WORKERS_ONLY if name == "workers" else "")
        (stack / "main.tf").write_text(text)
    monkeypatch.chdir(tmp_path)
    return root


@pytest.fixture
def tiny(tree: Path, aws_environ: None) -> Path:
    """The tree with its state bucket made; skips where there is no terraform to run."""
    if shutil.which("terraform") is None:
        pytest.skip("no terraform on PATH")
    infra.bootstrap("tiny")
    return tree


@pytest.fixture
def deployctl(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main.run([str(w) for w in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run
