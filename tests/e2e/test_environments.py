"""Every environment from nothing to everything and back: applied, planned clean, destroyed, nothing left."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runner.deployctl import env as environments
from runner.deployctl import infra, job
from runner.deployctl.environment import declared_variables

from .conftest import Cloud, statuses

pytestmark = pytest.mark.environments

# Fewer of them: SLUICE_E2E="dev prod".
NAMES = os.environ.get("SLUICE_E2E", "local dev staging prod").split()


@pytest.mark.timeout(3600)
def test_every_environment_from_nothing_to_everything_and_back(cloud: Cloud, tree: Path) -> None:
    # Given an account in which there is nothing but what AWS puts into it
    before = cloud.contents()

    # When every environment lives its whole life in it, side by side (they mostly wait)
    with ThreadPoolExecutor(len(NAMES)) as pool:
        lives = {name: pool.submit(whole_life, name, tree) for name in NAMES}
    failed = {name: str(life.exception()) for name, life in lives.items() if life.exception()}

    # Then each went well, and what is left is what there was
    left = {kind: count - before.get(kind, 0) for kind, count in cloud.contents().items()}
    left = {kind: count for kind, count in left.items() if count > 0}
    print(f"\n{cloud.requests()} requests; left: {left}")
    assert not failed
    assert left == {}


def whole_life(name: str, tree: Path) -> None:
    """Create, plan again, look for drift, destroy, delete."""

    def say(event: job.StackEvent) -> None:
        if event.phase in job.ENDED or event.phase == "planned":
            print(f"{name:8} {event.stack:12} {event.phase:10} {event.seconds:6.1f} s  {event.text}", flush=True)

    def said(what: str) -> None:
        nonlocal began
        print(f"{name:8} {what} in {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()

    began = time.monotonic()
    env = environments.begin(name, tree=tree)
    applied = infra.apply(env, on_event=say)
    environments.finish(env)
    assert set(statuses(applied)) == set(env.stacks()), name
    assert set(statuses(applied).values()) == {"applied"}, name
    said("applied from nothing")

    again = {r.stack: r.summary.as_json() for r in infra.plan(env, on_event=say) if r.status != "unchanged"}
    assert again == {}, name
    said("planned without a change")

    drifted = [c.address for r in infra.drift(env) for c in r.summary.items]
    assert drifted == [], name
    said("looked for drift")

    # What protects itself is told first that it may go.
    protecting = [n for n in env.stacks() if "deletion_protection" in declared_variables(env.source(n))]
    infra.apply(env, protecting, variables={"deletion_protection": "false"}, on_event=say)
    said("took protection away")

    infra.destroy(env, allow_destroy=True, variables={"deletion_protection": "false"}, on_event=say)
    environments.delete(job.prepare(env))
    said("destroyed")
