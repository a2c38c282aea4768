"""Staying with rollouts until they end: watching them, and carrying them on from here where that is asked."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from runner.deployctl import client, output
from runner.deployctl.client import Client
from runner.deployctl.watch import Watch
from runner.rollout import driver
from runner.rollout.cloud import Cloud
from runner.settings import RefusedError, SluiceError, UsageError
from runner.state import rollouts

_POLL_SECONDS = 0.5
_DRIVE_POLL_SECONDS = 0.2


class Left(SluiceError):
    """Ctrl-C while watching: the watching has ended, the roll has not."""

    exit_code = 130


def under_way(c: Client, roll_id: int | None) -> list[int]:
    """This rollout, or all that run, or else the last there was. Raises UsageError if there never was one."""
    with c.engine.connect() as connection:
        if roll_id is not None:
            return [rollouts.get(connection, roll_id).id]
        running = rollouts.running(connection)
        if running:
            return running
        latest = rollouts.recent(connection, 1)
    if not latest:
        raise UsageError(f"nothing was ever rolled in {c.env}", f"`deployctl roll --workers --env {c.env}` does")
    return [latest[0].id]


def check_abandoned(c: Client, ids: Sequence[int]) -> None:
    """Raise RefusedError if somebody carries one of these on right now."""
    with c.engine.connect() as connection:
        for roll_id in ids:
            r = rollouts.get(connection, roll_id)
            if r.state == "running" and r.driver and (r.driver_age or 0.0) < rollouts.DRIVER_SECONDS:
                raise RefusedError(
                    f"roll {r.id} is carried on by {r.driver}, heard {r.driver_age or 0.0:.0f} s ago",
                    f"`deployctl watch {r.id} --env {c.env}` shows it; a driver may be replaced once it is silent for "
                    f"{rollouts.DRIVER_SECONDS:.0f} s",
                )


def follow(c: Client, ids: Sequence[int], *, drive: bool, as_json: bool) -> None:
    """Watch until all have ended, with those that take them back; exit status 1 unless all succeeded."""
    ids, ended = list(ids), []
    while ids:
        _watch(c, ids, drive=drive, as_json=as_json)
        with c.engine.connect() as connection:
            ended += [rollouts.get(connection, i) for i in ids]
            ids = [n for i in ids if (n := rollouts.next_of(connection, i)) is not None]
    if as_json:
        output.print_json([{**vars(r), "driver": None} for r in ended])
    # A roll that was aborted because somebody asked ended as it should, but the fleet is not where it was to go.
    for r in ended:
        if r.state != "succeeded":
            output.fail(
                f"roll {r.id} of {r.pool} to {r.release} {r.state}: {r.error}",
                f"`deployctl fleet status --env {c.env}` shows what runs now",
            )
    if any(r.state != "succeeded" for r in ended):
        raise typer.Exit(1)


def _watch(c: Client, ids: Sequence[int], *, drive: bool, as_json: bool) -> None:
    numbers = ", ".join(map(str, ids))
    again = f"`deployctl watch {f'{ids[0]} ' if len(ids) == 1 else ''}--env {c.env}`"
    try:
        with _driving(c, ids, drive) as carry_on, Watch(c, ids, quiet=as_json) as watch:
            while watch.look():
                carry_on()
                time.sleep(_DRIVE_POLL_SECONDS if drive else _POLL_SECONDS)
    except KeyboardInterrupt:
        raise Left(
            f"roll {numbers}: {'a scheduler carries it on' if drive else 'it goes on'} without this terminal; "
            f"watch it again with {again}"
        ) from None


@contextlib.contextmanager
def _driving(c: Client, ids: Sequence[int], drive: bool) -> Iterator[Any]:
    """A function that carries the rollouts on from here, or does nothing."""
    if not drive:
        yield lambda: None
        return
    owner, cloud = f"{client.who()} pid {os.getpid()}", Cloud(c.settings.region)

    def carry_on() -> None:
        for roll_id in ids:
            driver.advance(c.engine, cloud, roll_id, owner, c.settings)

    try:
        yield carry_on
    finally:
        with c.engine.begin() as connection:
            for roll_id in ids:
                rollouts.let_go(connection, roll_id, owner)
