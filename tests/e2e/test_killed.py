"""KILL in the middle of applying the real stacks, three times in a row, then apply: it converges."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.deployctl import env as environments
from runner.deployctl import infra, job, locks, main
from tests.killing import kill_with_terraform

from .conftest import ROOT, Cloud, statuses

pytestmark = pytest.mark.environments

NAME = "dev"


@pytest.mark.timeout(2400)
def test_applies_that_are_killed_again_and_again_converge(cloud: Cloud, tree: Path) -> None:
    before = cloud.contents()
    env = environments.begin(NAME, tree=tree)
    for stack, kills in (("network", (5, 15, 40)), ("data", (8, 22))):
        # Given an apply of a stack that is killed once so and so much of it is done, and another one, and another
        for done in kills:
            if not killed_after(done, stack, env.data(stack, os.environ)):
                break
            for held in locks.held(env, [stack], os.environ):
                assert held.pid is None
                assert main.run(["infra", "unlock", "--env", NAME, "--stack", stack, "--id", held.lock.id]) == 0
        # When one may end
        (result,) = infra.apply(env, [stack])
        print(f"{stack}: {result.summary.line(done=True)}: {sum(bool(c.id) for c in result.summary.items)} by import")
        # Then there is nothing more to do
        again = {r.stack: r.summary.as_json() for r in infra.plan(env, [stack]) if r.status != "unchanged"}
        assert again == {}
    # And all of it can be destroyed
    assert set(statuses(infra.destroy(env, allow_destroy=True)).values()) <= {"destroyed", "unchanged"}
    environments.delete(job.prepare(env))
    left = {kind: count - before.get(kind, 0) for kind, count in cloud.contents().items()}
    assert {kind: count for kind, count in left.items() if count > 0} == {}


def killed_after(done: int, stack: str, data: Path) -> bool:
    """Start an apply and KILL it with its terraform when it has made so many resources; False if it was quicker."""
    argv = [sys.executable, "-m", "runner.deployctl.main", "infra", "apply", "--env", NAME, "--stack", stack, "--yes"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    known = set(data.glob("apply-*.log"))
    deadline = time.monotonic() + 400
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ) as process:
        while True:
            logs = set(data.glob("apply-*.log")) - known
            if sum(log.read_text().count('"type":"apply_complete"') for log in logs) >= done:
                break
            if process.poll() is not None:
                assert process.returncode == 0, process.communicate()
                return False
            assert time.monotonic() < deadline, "the apply does not get on"
            time.sleep(0.05)
        kill_with_terraform(process)
        return True
