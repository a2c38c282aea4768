"""`deployctl roll`: move a fleet to another release, losing nothing. Files the wish, shows the plan, watches.

The schedulers carry it out: closing this terminal changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from runner.deployctl import client, foreign, output
from runner.deployctl.client import Client
from runner.deployctl.watch import Watch
from runner.rollout import driver
from runner.rollout.cloud import Cloud, group_name
from runner.rollout.facts import Facts
from runner.rollout.fleet import LiveFleet
from runner.rollout.plan import Step, Wish, plan
from runner.rollout.release import archive_key
from runner.settings import SluiceError, UsageError
from runner.state import rollouts

ROLE = "worker"
_POLL_SECONDS = 0.5
_DRIVE_POLL_SECONDS = 0.2


class _Left(SluiceError):
    """Ctrl-C while watching: the watching has ended, the roll has not."""

    exit_code = 130


def roll(
    roll_id: int | None = typer.Argument(None, metavar="[ROLL]", help="With --watch or --abort: which one."),
    env: str = typer.Option("", "--env", help="The environment."),
    fleet: Path | None = typer.Option(None, "--fleet", help="Instead: the file of a Celery fleet that is not ours."),
    workers: bool = typer.Option(False, "--workers", help="Roll the workers."),
    pool: list[str] = typer.Option([], "--pool", help="Only this pool; may be given again."),
    release: str = typer.Option("newest", "--release", help="Release id, or `newest`."),
    batch: int = typer.Option(1, "--batch", help="How many nodes of a pool at once."),
    only_plan: bool = typer.Option(False, "--plan", help="Show the plan and touch nothing."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    drive: bool = typer.Option(False, "--drive", help="Carry it out from here, without a scheduler."),
    watch: bool = typer.Option(False, "--watch", help="Watch a roll that is under way."),
    abort: bool = typer.Option(False, "--abort", help="Stop a roll and leave the fleet healthy."),
    as_json: bool = typer.Option(False, "--json", help="Print the plan or the result as JSON."),
) -> None:
    """Move every node of a fleet to another release without losing a task.

    Batch by batch: new nodes come up and prove that they work, then old ones finish their tasks and go.
    """
    if fleet is not None:
        foreign.roll(fleet, release, only_plan=only_plan, yes=yes, abort=abort, as_json=as_json)
        return
    if not env:
        raise UsageError("--env is missing", "`deployctl env list` shows the environments there are")
    if (watch or abort) == workers:
        raise UsageError("say what to do: --workers rolls them, --watch and --abort take a roll under way")
    if roll_id is not None and workers:
        raise UsageError(f"{roll_id} is the number of a roll and goes with --watch or --abort")
    with client.connect(env) as c:
        if workers:
            ids = _file(c, pool, release, Wish("", batch), only_plan=only_plan, yes=yes, as_json=as_json)
        else:
            ids = _under_way(c, roll_id)
            if abort:
                _ask_abort(c, ids)
        if ids:
            _follow(c, ids, drive=drive, as_json=as_json)


# --- filing ---------------------------------------------------------------------------------------------------


def _file(
    c: Client, pools: Sequence[str], release: str, wish: Wish, *, only_plan: bool, yes: bool, as_json: bool
) -> list[int]:
    """Plan, show, ask, and write the wishes down in one transaction; the ids, none if there is nothing to do."""
    with c.engine.connect() as connection:
        chosen = rollouts.find_release(connection, release)
    if not c.artifacts().exists(archive_key(chosen.id)):
        raise SluiceError(
            f"the archive of release {chosen.id} is not in {c.settings.artifacts_url}",
            f"`deployctl release build --env {c.env}` publishes it again",
        )
    wish = Wish(chosen.id, wish.batch, drain_seconds=float(c.settings.drain_seconds))
    facts = _facts(c, pools)
    if not only_plan:
        with c.engine.connect() as connection:
            rollouts.refuse_second(connection, ROLE, list(facts))
    plans = {name: plan(f, wish) for name, f in facts.items()}
    if only_plan and as_json:
        output.print_json(_plan_json(chosen.id, plans))
        return []
    if not any(plans.values()):
        output.note(f"nothing to do: every worker of {', '.join(plans)} runs {chosen.id}")
        if as_json:
            output.print_json([])
        return []
    if not as_json:
        label = f" ({chosen.label})" if chosen.label else ""
        _show(plans, facts, f"roll to {chosen.id}{label}")
    if only_plan:
        return []
    if not yes and not output.confirm(f"Roll {sum(map(bool, plans.values()))} pool(s) of {c.env} to {chosen.id}?"):
        raise typer.Abort
    with c.engine.begin() as connection:
        return [
            rollouts.create(
                connection,
                role=ROLE,
                pool=name,
                release=chosen.id,
                strategy="replace",
                wish=vars(wish),
                steps=[(s.action, s.args) for s in steps],
                who=client.who(),
            )
            for name, steps in plans.items()
            if steps
        ]


def _facts(c: Client, pools: Sequence[str]) -> dict[str, Facts]:
    """The facts of these pools, or of all. Raises UsageError for one that does not exist."""
    cloud = Cloud(c.settings.region)
    prefix = group_name(c.env, ROLE, "")
    known = sorted(g.name.removeprefix(prefix) for g in cloud.groups(prefix))
    if not known:
        raise UsageError(f"{c.env} has no worker pools", f"`deployctl infra apply --env {c.env}` makes them")
    for name in pools:
        if name not in known:
            raise UsageError(f"{c.env} has no worker pool {name!r}", f"its pools are {', '.join(known)}")
    return {name: LiveFleet(c.engine, cloud, c.env, ROLE, name).facts() for name in dict.fromkeys(pools or known)}


def _show(plans: Mapping[str, Sequence[Step]], facts: Mapping[str, Facts], title: str) -> None:
    rows = []
    for name, steps in plans.items():
        if not steps:
            rows.append((name, "", "nothing to do", ""))
        running = {n.instance_id: n.running for n in facts[name].nodes}
        for number, step in enumerate(steps, 1):
            tasks = sum(running.get(i, 0) for i in step.args.get("instances", [])) if step.action == "drain" else ""
            rows.append((name, str(number), step.text(), str(tasks)))
    output.print_table(("pool", "#step", "~what", "?#tasks running"), rows, title=title)


def _plan_json(release: str, plans: Mapping[str, Sequence[Step]]) -> dict[str, Any]:
    pools = {name: [{"action": s.action, "args": s.args, "text": s.text()} for s in p] for name, p in plans.items()}
    return {"release": release, "strategy": "replace", "pools": pools}


# --- following ------------------------------------------------------------------------------------------------


def _under_way(c: Client, roll_id: int | None) -> list[int]:
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


def _ask_abort(c: Client, ids: Sequence[int]) -> None:
    with c.engine.begin() as connection:
        for roll_id in ids:
            if not rollouts.ask_abort(connection, roll_id, client.who()):
                state = rollouts.get(connection, roll_id)
                what = "is turning back already" if state.state == "running" else f"has {state.state} already"
                output.note(f"roll {roll_id} {what}")


def _follow(c: Client, ids: Sequence[int], *, drive: bool, as_json: bool) -> None:
    """Watch until all have ended; exit status 1 unless all succeeded."""
    numbers = ", ".join(map(str, ids))
    again = f"`deployctl roll --env {c.env} --watch{f' {ids[0]}' if len(ids) == 1 else ''}`"
    try:
        with _driving(c, ids, drive) as carry_on, Watch(c, ids, quiet=as_json) as watch:
            while watch.look():
                carry_on()
                time.sleep(_DRIVE_POLL_SECONDS if drive else _POLL_SECONDS)
    except KeyboardInterrupt:
        raise _Left(
            f"roll {numbers}: {'a scheduler carries it on' if drive else 'it goes on'} without this terminal; "
            f"watch it again with {again}"
        ) from None
    with c.engine.connect() as connection:
        ended = [rollouts.get(connection, i) for i in ids]
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


@contextlib.contextmanager
def _driving(c: Client, ids: Sequence[int], drive: bool) -> Iterator[Any]:
    """A function that carries the rollouts on from here, or does nothing."""
    if not drive:
        yield lambda: None
        return
    owner, cloud = f"{client.who()} pid {os.getpid()}", Cloud(c.settings.region)

    def carry_on() -> None:
        for roll_id in ids:
            driver.advance(c.engine, cloud, roll_id, owner, c.env)

    try:
        yield carry_on
    finally:
        with c.engine.begin() as connection:
            for roll_id in ids:
                rollouts.let_go(connection, roll_id, owner)
