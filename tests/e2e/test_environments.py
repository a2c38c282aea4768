"""Every environment from nothing to everything and back: applied, planned clean, destroyed, nothing left."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runner.deployctl import env as environments
from runner.deployctl import infra, job

from .conftest import Cloud, statuses

pytestmark = pytest.mark.e2e


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["local", "dev", "staging", "prod"])
def test_an_environment_from_nothing_to_everything_and_back(cloud: Cloud, tree: Path, name: str) -> None:
    took: dict[str, float] = {}
    before = cloud.contents()

    def timed(what: str, began: float) -> None:
        took[what] = round(time.monotonic() - began, 1)

    # Given nothing but an account, when the environment is created
    env = environments.begin(name, tree=tree)
    began = time.monotonic()
    applied = infra.apply(name, on_event=_say)
    environments.finish(env)
    timed("apply", began)
    assert set(statuses(applied).values()) == {"applied"}

    # Then a second plan finds nothing to do, and nothing has drifted
    began = time.monotonic()
    again = infra.plan(name, on_event=_say)
    timed("plan", began)
    changed = {r.stack: r.summary.as_json() for r in again if r.status != "unchanged"}
    assert not changed

    # And what is destroyed leaves nothing but the state, and the environment's end leaves not even that
    began = time.monotonic()
    infra.destroy(name, allow_destroy=True, on_event=_say)
    environments.delete(job.prepare(name))
    timed("destroy", began)
    left = {kind: count for kind, count in cloud.contents().items() if count > before.get(kind, 0)}
    print(f"\n{name}: {took}, {cloud.requests()} requests, left: {left}")
    assert not left


def _say(event: job.StackEvent) -> None:
    if event.phase in job.ENDED or event.phase == "planned":
        print(f"{event.stack:12} {event.phase:10} {event.seconds:6.1f} s  {event.text}", flush=True)
