"""What was applied and destroyed, one object a stack and time, beside the states of the environment."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runner.deployctl import environment
from runner.deployctl.client import who
from runner.deployctl.environment import Environment
from runner.settings import UsageError

_PREFIX = "history"


@dataclass(frozen=True)
class Entry:
    """One stack as it was changed. `commit` is of the Terraform tree, with a + where it had changes on top."""

    id: str
    stack: str
    action: str  # apply, destroy
    status: str  # applied, destroyed, failed, cancelled
    at: str  # when it was over
    seconds: float
    who: str
    commit: str
    changes: str  # 3 to create, 1 to change
    variables: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def ended(self) -> dt.datetime:
        """When it was over."""
        return dt.datetime.fromisoformat(self.at)

    @property
    def clean(self) -> bool:
        """Whether a commit says all that was applied."""
        return bool(self.commit) and not self.commit.endswith("+")


def write(
    env: Environment,
    environ: Mapping[str, str],
    *,
    stack: str,
    action: str,
    status: str,
    seconds: float,
    changes: str,
    variables: Mapping[str, Any],
    error: str | None = None,
) -> Entry:
    """Write down how an apply or a destroy of a stack ended. Raises botocore's errors."""
    now = dt.datetime.now(dt.UTC)
    key = f"{_PREFIX}/{env.name}/{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}-{stack}.json"
    entry = Entry(
        id=_id(key),
        stack=stack,
        action=action,
        status=status,
        at=now.isoformat(timespec="milliseconds"),
        seconds=round(seconds, 1),
        who=who(),
        commit=commit_of(env.tree),
        changes=changes,
        variables=dict(variables),
        error=error,
    )
    body = json.dumps(asdict(entry), default=str).encode()
    environment.client("s3", env, environ).put_object(Bucket=env.state_bucket, Key=key, Body=body)
    return entry


def read(env: Environment, environ: Mapping[str, str], limit: int = 20, stack: str = "") -> list[Entry]:
    """The newest entries, of one stack or of all, newest first; none where the bucket is not there (any more)."""
    keys = [k for k in _keys(env, environ) if stack in ("", _stack(k))]
    s3 = environment.client("s3", env, environ)
    return [_entry(s3, env, key) for key in keys[:limit]]


def find(env: Environment, environ: Mapping[str, str], entry_id: str) -> tuple[Entry, list[Entry]]:
    """An entry and all of its stack that were written before it, newest first. Raises UsageError if there is none."""
    keys = _keys(env, environ)
    stack = next((_stack(key) for key in keys if _id(key) == entry_id), None)
    if stack is None:
        raise UsageError(f"no {entry_id} in the history of {env.name}", f"`deployctl history --env {env.name}`")
    entries = read(env, environ, limit=len(keys), stack=stack)
    at = next(i for i, e in enumerate(entries) if e.id == entry_id)
    return entries[at], entries[at + 1 :]


def commit_of(tree: Path) -> str:
    """The commit of the Terraform tree, with a + where there are changes on top of it; empty outside of git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(tree), *words], capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _keys(env: Environment, environ: Mapping[str, str]) -> list[str]:
    """What is written, newest first; a name begins with the time."""
    if not environment.state_bucket_exists(env, environ):
        return []
    pages = environment.client("s3", env, environ).get_paginator("list_objects_v2")
    found = pages.paginate(Bucket=env.state_bucket, Prefix=f"{_PREFIX}/{env.name}/")
    return sorted((o["Key"] for page in found for o in page.get("Contents", [])), reverse=True)


def _id(key: str) -> str:
    return f"infra-{hashlib.sha256(key.encode()).hexdigest()[:7]}"


def _stack(key: str) -> str:
    return key.rpartition("/")[2].partition("-")[2].removesuffix(".json")


def _entry(s3: Any, env: Environment, key: str) -> Entry:
    return Entry(**json.loads(s3.get_object(Bucket=env.state_bucket, Key=key)["Body"].read()))
