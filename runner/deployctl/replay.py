"""`deployctl fleet load` and `fleet simulate`: what an autoscaling policy would have done with a load."""

from __future__ import annotations

import datetime as dt
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from runner.deployctl import client, cost, output, picture
from runner.rollout.autoscale import load as loads
from runner.rollout.autoscale.load import Task
from runner.rollout.autoscale.policies import parse
from runner.rollout.autoscale.policy import Limits
from runner.rollout.autoscale.simulate import Machine, Result, simulate
from runner.settings import SluiceError, UsageError
from runner.state import scaling

_TICKS = 20_000  # a replay takes about that many looks: a day by four seconds
_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def load(
    env: str = typer.Option("", "--env", help="The environment whose load is written."),
    since: str = typer.Option("7d", "--since", help="How far back: 90m, 24h, 7d, 2w, or an ISO 8601 time."),
    queue: list[str] = typer.Option([], "--queue", help="Only this queue; may be given again."),
    synthetic: str = typer.Option("", "--synthetic", help=f"A made-up load instead: {', '.join(loads.SYNTHETIC)}."),
    seed: int = typer.Option(0, "--seed", help="Of a made-up load; the same seed gives the same load."),
) -> None:
    """Write a load as CSV on stdout: the queue of each task that was executed, when it was ready, how long it ran."""
    if bool(env) == bool(synthetic):
        raise UsageError("whose load? --env takes the recorded one, --synthetic makes one up")
    if synthetic:
        if synthetic not in loads.SYNTHETIC:
            raise UsageError(f"no synthetic load {synthetic!r}", f"there are {', '.join(loads.SYNTHETIC)}")
        start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        made = loads.synthetic(synthetic, seed)
        n = loads.write(sys.stdout, ((t.queue, start + dt.timedelta(seconds=t.ready_at), t.seconds) for t in made))
    else:
        begin = _since(since, dt.datetime.now(dt.UTC))
        with client.connect(env) as c, c.engine.connect() as connection:
            n = loads.write(sys.stdout, scaling.load(connection, begin, queue or None))
    output.note(f"{n} tasks")


def run(
    path: Path = typer.Argument(..., metavar="LOAD.csv", help="What `fleet load` has written.", exists=False),
    policy: list[str] = typer.Option(
        [], "--policy", help="sluice[:cooldown=S,wait=S,min=N,max=N], fixed:N, cpu:PERCENT, backlog:N; may be repeated."
    ),
    queue: list[str] = typer.Option([], "--queue", help="Only this queue's tasks; may be given again."),
    minimum: int = typer.Option(0, "--min", help="Fewest nodes."),
    maximum: int = typer.Option(10, "--max", help="Most nodes."),
    slots: int = typer.Option(4, "--slots", help="Tasks that a node runs at once."),
    cooldown: float = typer.Option(300.0, "--cooldown", help="Seconds a node that was needed stays."),
    wait: float = typer.Option(60.0, "--wait", help="Seconds within which a waiting task should be done."),
    boot: float = typer.Option(90.0, "--boot", help="Seconds from the request for a node to its first task."),
    cpu: float = typer.Option(0.8, "--cpu", help="The part of a slot's CPU that a task uses, for cpu:PERCENT."),
    instance_type: str = typer.Option("m7i.large", "--instance-type", help="What a node is, for its price."),
    spot: float = typer.Option(0.0, "--spot", help="Percent of the nodes that are spot instances, for the price."),
    picture_path: Path | None = typer.Option(None, "--picture", help="Also draw it: a file that ends in .svg or .png."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Replay a load on a pool under several policies: who would have waited how long, and what it would have cost."""
    limits = _limits(minimum, maximum, slots, cooldown, wait)
    if boot < 0 or not 0 < cpu <= 1 or not 0 <= spot <= 100:
        raise UsageError("--boot is 0 or more seconds, --cpu a part between 0 and 1, --spot 0 to 100 percent")
    if picture_path is not None:
        picture.check(picture_path)
    price = _price(instance_type, spot)
    tasks = _read(path, queue)
    results = replay(tasks, policy, limits, Machine(slots, boot), cpu_share=cpu)
    if as_json:
        output.print_json([as_dict(r, price) for r in results])
    else:
        _print(results, tasks, price)
    if picture_path is not None:
        picture.draw(results, price, picture_path)
        output.note(f"{picture_path} written")


def replay(
    tasks: Sequence[Task], policies: Sequence[str], limits: Limits, machine: Machine, *, cpu_share: float
) -> list[Result]:
    """The load under each policy, by its name. Without names: the autoscaler, fixed fleets, and target tracking.

    The fixed fleets are one for the peak, and the smallest that costs no less than the autoscaler's.
    Raises UsageError for a policy that does not exist, SluiceError for one that never gets the tasks done.
    """
    tick = max(1.0, tasks[-1].ready_at / _TICKS)
    chosen = [parse(name, limits, cpu_share=cpu_share) for name in policies or ["sluice"]]

    def one(policy: Any) -> Result:
        try:
            return simulate(tasks, policy, machine, tick_seconds=tick)
        except ValueError as e:
            raise SluiceError(f"policy {e}", "more nodes, or another policy") from None

    results = [one(policy) for policy in chosen]
    if not policies:
        same = max(1, math.ceil(results[0].node_hours * 3600 / results[0].seconds))
        names = dict.fromkeys([f"fixed:{same}", f"fixed:{max(results[0].peak, 1)}", "cpu:60", "backlog:1"])
        results += [one(parse(name, limits, cpu_share=cpu_share)) for name in names]
    return results


def as_dict(result: Result, price: float) -> dict[str, Any]:
    """A replay for `--json`: seconds, hours, dollars."""
    return {
        "policy": result.policy,
        "tasks": len(result.waits),
        "wait_seconds": {name: round(result.wait(p), 2) for name, p in _PERCENTILES.items()},
        "nodes_at_most": result.peak,
        "nodes_launched": result.launched,
        "node_hours": round(result.node_hours, 2),
        "cost": round(result.node_hours * price, 2),
        "slots_used": round(result.utilization, 3),
        "busy_nodes_taken": result.busy_picked,
    }


_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "max": 100.0}


def _print(results: Sequence[Result], tasks: Sequence[Task], price: float) -> None:
    work = sum(t.seconds for t in tasks) / 3600
    span = output.duration(tasks[-1].ready_at)
    output.print_table(
        (
            "policy",
            *(f"#wait {name}" for name in ("p50", "p95", "p99", "max")),
            "?#nodes at most",
            "#node-hours",
            "#cost",
            "?#slots used",
            "?#busy nodes taken",
        ),
        (
            (
                r.policy,
                *(_seconds(r.wait(_PERCENTILES[name])) for name in ("p50", "p95", "p99", "max")),
                r.peak,
                f"{r.node_hours:.1f}",
                f"${r.node_hours * price:,.2f}",
                f"{r.utilization:.0%}",
                r.busy_picked or "-",
            )
            for r in results
        ),
        title=f"{len(tasks):,} tasks, {work:,.1f} hours of work, ready within {span}",
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else output.duration(seconds)


def _read(path: Path, queues: Sequence[str]) -> list[Task]:
    if not path.is_file():
        raise UsageError(f"there is no file {path}", "`deployctl fleet load --env ENV > LOAD.csv` writes one")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            tasks = loads.read(file, str(path))
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text", "a load is a CSV file in UTF-8") from None
    if queues:
        unknown = set(queues) - {t.queue for t in tasks}
        if unknown:
            raise UsageError(f"{path} holds no task of queue {', '.join(sorted(unknown))}")
        tasks = [t for t in tasks if t.queue in queues]
        first = tasks[0].ready_at
        tasks = [Task(t.ready_at - first, t.seconds, t.queue) for t in tasks]
    return tasks


def _limits(minimum: int, maximum: int, slots: int, cooldown: float, wait: float) -> Limits:
    try:
        return Limits(minimum, maximum, slots, cooldown, wait)
    except ValueError as e:
        raise UsageError(str(e), "--min, --max, --slots, --cooldown, --wait") from None


def _price(instance_type: str, spot: float) -> float:
    """Dollars an hour of a node."""
    table = cost.prices()
    try:
        full = cost.hourly(instance_type, table["ec2_large_hour"])
    except (KeyError, ValueError):
        known = ", ".join(sorted(table["ec2_large_hour"]))
        raise UsageError(f"no price of {instance_type!r}", f"families with a price: {known}") from None
    return float(full * (1 - spot / 100 * (1 - table["spot_share"])))


def _since(value: str, now: dt.datetime) -> dt.datetime:
    """An instant from `90m`, `24h`, `7d`, `2w` or ISO 8601. Raises UsageError."""
    if found := re.fullmatch(r"(\d+)([mhdw])", value):
        return now - dt.timedelta(seconds=int(found[1]) * _UNITS[found[2]])
    try:
        at = dt.datetime.fromisoformat(value)
    except ValueError:
        raise UsageError(f"--since {value!r} is no time", "90m, 24h, 7d, 2w, or 2026-01-31T08:00:00Z") from None
    return at if at.tzinfo else at.replace(tzinfo=dt.UTC)


def register(app: typer.Typer) -> None:
    """Make them verbs of `deployctl fleet`."""
    app.command("load")(load)
    app.command("simulate")(run)
