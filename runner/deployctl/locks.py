"""State locks: who holds one, since when, and whether that process is alive on this machine."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from runner.deployctl import environment
from runner.deployctl.environment import Environment
from runner.deployctl.messages import Lock

_CLOCK_SECONDS = 2.0  # the start of a process is known to a hundredth, the lock's time is somebody's clock


@dataclass(frozen=True)
class Held:
    """A lock on the state of a stack. `pid` is its holder, if that is a process of this machine that is alive."""

    stack: str
    lock: Lock
    pid: int | None
    here: bool  # whether it was taken on this machine

    @property
    def holder(self) -> str:
        """What is known of the holder's life, in a few words."""
        if self.pid:
            return f"alive here: process {self.pid}"
        return "dead: no such process here" if self.here else "another machine: cannot be seen from here"

    def as_json(self) -> dict[str, Any]:
        """The lock for `--json`."""
        return {
            "stack": self.stack,
            "id": self.lock.id,
            "who": self.lock.who,
            "operation": self.lock.verb,
            "since": self.lock.created.isoformat() if self.lock.created else None,
            "pid": self.pid,
            "here": self.here,
        }


def held(env: Environment, stacks: Iterable[str], environ: Mapping[str, str]) -> list[Held]:
    """The locks that are held on these stacks now."""
    from botocore.exceptions import ClientError

    s3 = environment.client("s3", env, environ)
    found = []
    for stack in stacks:
        try:
            body = s3.get_object(Bucket=env.state_bucket, Key=f"{env.state_key(stack)}.tflock")["Body"].read()
        except ClientError as e:
            if e.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                continue
            raise
        lock = Lock.from_json(body)
        here = lock.who.rpartition("@")[2] == socket.gethostname()
        found.append(Held(stack, lock, _process(lock, env.name, stack) if here else None, here))
    return found


def _process(lock: Lock, env: str, stack: str) -> int | None:
    """The terraform on this machine that may hold the lock: what cannot be told apart from it counts as it."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if not process.name().startswith("terraform") or process.name().startswith("terraform-provider"):
                continue
            if lock.created and process.create_time() > lock.created.timestamp() + _CLOCK_SECONDS:
                continue
            if _works_on(process, env, stack):
                return process.pid
    return None


def _works_on(process: psutil.Process, env: str, stack: str) -> bool:
    try:
        if Path(process.cwd()).name != stack:
            return False
        data = process.environ().get("TF_DATA_DIR", "")
    except psutil.AccessDenied:
        return True
    return not data or Path(data).parts[-2:] == (env, stack)
