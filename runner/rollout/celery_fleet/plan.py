"""The plan of a roll: a pure function of the file, the hosts and how far each one is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from runner.rollout.celery_fleet.spec import FleetSpec, batch_size, fill

Action = Literal["drain", "stop", "update", "start", "terminate", "back", "check"]


@dataclass(frozen=True)
class Target:
    """One host. `workers`: the names of its Celery workers; all of them have to answer."""

    name: str
    address: str
    port: int
    hostname: str = ""
    instance: str = ""
    workers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """How far a host is, as it was written down: the last action begun, and whether that one is over.

    queues: what its workers consumed before they were told to stop, by worker. stopping: its stop was begun at some
    time, so that a worker that is silent was idle before and is drained no more.
    """

    action: Action | None = None
    over: bool = False
    queues: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stopping: bool = False
    result: str = ""


@dataclass(frozen=True)
class Step:
    """One thing to do on one host, as data. `text` is the command, or what is waited for."""

    batch: int
    host: str
    action: Action
    text: str


def actions(spec: FleetSpec) -> tuple[Action, ...]:
    """What is done on each host, in order."""
    if spec.replaces:
        return ("drain", "terminate", "back")
    checked: tuple[Action, ...] = ("check",) if spec.commands and spec.commands.check else ()
    return ("drain", "stop", "update", "start", "back", *checked)


def remaining(order: Sequence[Action], record: Record, *, answers: bool) -> list[Action]:
    """What is left for a host after a roll that was cut off. `answers`: some worker of it answers.

    A drain is never taken for granted: a worker that answers may have been started again and take tasks.
    """
    if record.action is None or record.action == "drain":
        return list(order)
    at = order.index(record.action) if record.action in order else 0
    if record.over and at == len(order) - 1:
        return []
    started = record.action in ("start", "back", "check")
    if answers and not started and record.action != "terminate":
        return list(order)
    return list(order[at + 1 :] if record.over else order[at:])


def batches(spec: FleetSpec, targets: Sequence[Target]) -> list[list[Target]]:
    """The hosts in groups that are rolled at once, in the order of the file or of their launch."""
    size = batch_size(spec.roll.batch, len(targets))
    return [list(targets[i : i + size]) for i in range(0, len(targets), size)]


def plan(spec: FleetSpec, targets: Sequence[Target], release: str, left: Mapping[str, Sequence[Action]]) -> list[Step]:
    """Every step of the roll. `left`: host → what is still to be done on it; hosts with nothing left have no step."""
    todo = [t for t in targets if left[t.name]]
    return [
        Step(number, target.name, action, text(spec, target, action, release))
        for number, batch in enumerate(batches(spec, todo), 1)
        for target in batch
        for action in left[target.name]
    ]


def text(spec: FleetSpec, target: Target, action: Action, release: str) -> str:
    """The command of an action, or what it waits for. Values go into a command quoted for a shell. Pure."""
    names = ", ".join(target.workers)
    match action:
        case "drain":
            end = "then wait on" if spec.roll.on_deadline == "wait" else "then give up"
            return f"{names} take no more tasks and finish theirs, within {spec.roll.drain_deadline:g} s, {end}"
        case "terminate":
            return f"terminate {target.instance}; its group starts another"
        case "back":
            who = "a new instance's workers" if spec.replaces else names
            return f"{who} answer and take tasks again, within {spec.roll.back_timeout:g} s"
    assert spec.commands is not None
    command = getattr(spec.commands, action)
    return fill(command, {k: shlex.quote(v) for k, v in values(target, release).items()})


def values(target: Target, release: str) -> dict[str, str]:
    """What stands for the placeholders."""
    return {"host": target.address, "hostname": target.hostname, "instance": target.instance, "release": release}
