"""The worst that can happen to a `deployctl` that applies."""

from __future__ import annotations

import os
import signal
import subprocess

import psutil


def kill_with_terraform(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """KILL it, and all of Terraform that it has started, at once."""
    terraform = [p for p in psutil.Process(process.pid).children() if p.name().startswith("terraform")]
    process.kill()
    for each in terraform:
        os.killpg(each.pid, signal.SIGKILL)
    psutil.wait_procs(terraform, timeout=30)
    process.communicate(timeout=30)
