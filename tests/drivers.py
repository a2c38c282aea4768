"""Rollouts that the schedulers leave alone, and drivers of them that die where they are told to."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine

from runner.rollout import driver, published, schema
from runner.rollout.cloud import Cloud
from runner.rollout.driver import DbJournal
from runner.rollout.facts import Facts
from runner.rollout.fleet import LiveFleet
from runner.rollout.plan import Wish, plan
from runner.settings import Settings
from runner.state import rollouts
from runner.state.db import connect
from runner.storage import Storage

SILENT_SECONDS = 0.5  # a driver of these that was silent for so long is replaced
# What a driver writes down, and what it does.
_POINTS: Sequence[tuple[type, Sequence[str]]] = (
    (DbJournal, ("start", "done", "fail", "turn_back", "finish")),
    (LiveFleet, ("set_release", "set_desired", "terminate", "cordon", "heartbeat", "order")),
)


def file(
    engine: Engine, artifacts: Storage, facts: Facts, wish: Wish, *, owner: str = "", after: Sequence[int] = ()
) -> int:
    """A rollout of a pool, its number; with an owner no scheduler touches it before that one was silent for 15 s."""
    archive = published.fetch(artifacts, wish.release, [])
    with engine.begin() as c:
        facts = dataclasses.replace(facts, schema=schema.compare(archive, c))
        roll = rollouts.create(
            c,
            role=facts.role,
            pool=facts.pool,
            release=wish.release,
            strategy=wish.strategy,
            wish={**vars(wish), "before": facts.before(wish.release), "after": list(after)},
            steps=[(s.action, s.args) for s in plan(facts, wish)],
            who="drill",
        )
        if owner:
            rollouts.take(c, roll, owner)
        return roll


def drive(url: str, settings: Settings, roll: int, owner: str, die_at: int = 0) -> None:
    """Drive until the roll has ended, or KILL this process after the nth thing that is written down or done.

    For a process of its own: it changes the driver's classes.
    """
    points = 0

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **kwargs: Any) -> Any:
            nonlocal points
            value = method(*args, **kwargs)
            points += 1
            if points == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return value

        return act

    for kind, names in _POINTS:
        for name in names:
            setattr(kind, name, watched(getattr(kind, name)))
    rollouts.take.__kwdefaults__["silent_seconds"] = SILENT_SECONDS  # type: ignore[index]
    engine, cloud = connect(url, application_name=owner), Cloud(settings.region)
    while driver.advance(engine, cloud, roll, owner, settings):
        time.sleep(0.1)
