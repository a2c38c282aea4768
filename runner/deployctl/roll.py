"""`deployctl roll`: move a fleet to another release, losing nothing. Files the wish, shows the plan, watches.

The schedulers carry it out: closing this terminal changes nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from sqlalchemy import Connection

from runner.deployctl import client, follow, foreign, output
from runner.deployctl.client import Client
from runner.rollout import published, schema
from runner.rollout.cloud import Cloud, group_name
from runner.rollout.facts import Facts
from runner.rollout.fleet import LiveFleet
from runner.rollout.plan import STRATEGIES, Step, Wish, plan
from runner.rollout.sign import trusted
from runner.settings import RefusedError, UsageError
from runner.state import rollouts
from runner.state.rollouts import ReleaseView

# A new scheduler knows what the new workers want of it; pages come last.
ROLES = ("scheduler", "worker", "web")
Target = tuple[str, str]  # role, pool
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def roll(
    roll_id: int | None = typer.Argument(
        None, metavar="[ROLL]", help="With --watch, --resume, --abort, --revert: which one."
    ),
    env: str = typer.Option("", "--env", help="The environment."),
    fleet: Path | None = typer.Option(None, "--fleet", help="Instead: the file of a Celery fleet that is not ours."),
    workers: bool = typer.Option(False, "--workers", help="Roll the workers."),
    schedulers: bool = typer.Option(False, "--schedulers", help="Roll the schedulers."),
    web: bool = typer.Option(False, "--web", help="Roll the web nodes."),
    everything: bool = typer.Option(False, "--all", help="Schedulers, then workers, then web."),
    pool: list[str] = typer.Option([], "--pool", help="Only this worker pool; may be given again."),
    release: str = typer.Option("newest", "--release", help="Release id, or `newest`."),
    strategy: str = typer.Option("replace", "--strategy", help=f"{' or '.join(STRATEGIES)}."),
    batch: str = typer.Option("1", "--batch", help="How many nodes of a pool at once: 2, or 25%."),
    surge: int | None = typer.Option(
        None, "--surge", help="How many machines more meanwhile; 0: old ones go first.", show_default="as the batch"
    ),
    canary: int = typer.Option(0, "--canary", help="Size of the first batch, which is watched for --bake."),
    bake: str = typer.Option("0", "--bake", help="How long the first batch works beside the old nodes: 90s, 10m."),
    gate_command: list[str] = typer.Option([], "--gate-command", help="Has to exit with 0 before old nodes go."),
    gate_promql: list[str] = typer.Option(
        [], "--gate-promql", help="'URL QUERY': has to return something and no 0 before old nodes go."
    ),
    drain_deadline: str = typer.Option(
        "", "--drain-deadline", help="How long old nodes may finish tasks.", show_default="as configured"
    ),
    on_deadline: str = typer.Option(
        "interrupt", "--on-deadline", help="interrupt: hand on what still runs; wait: let it end."
    ),
    on_failure: str = typer.Option("revert", "--on-failure", help="revert: the old release comes back; stop."),
    only_plan: bool = typer.Option(False, "--plan", help="Show the plan and touch nothing."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    force: bool = typer.Option(False, "--force", help="Also where no node of the pool is healthy."),
    drive: bool = typer.Option(False, "--drive", help="Carry it out from here, without a scheduler."),
    watch: bool = typer.Option(False, "--watch", help="Watch a roll that is under way."),
    resume: bool = typer.Option(False, "--resume", help="Carry on from here a roll whose driver is dead."),
    abort: bool = typer.Option(False, "--abort", help="Stop a roll here and leave the fleet healthy."),
    revert: bool = typer.Option(False, "--revert", help="Stop a roll, or take it back once it has ended."),
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
    roles = [r for r, asked in zip(ROLES, (schedulers, workers, web), strict=True) if asked or everything]
    if sum((watch, resume, abort, revert, bool(roles))) != 1:
        raise UsageError(
            "say what to do: --workers, --schedulers, --web or --all roll them; "
            "--watch, --resume, --abort and --revert take a roll under way"
        )
    if roll_id is not None and roles:
        raise UsageError(f"{roll_id} is the number of a roll and goes with --watch, --resume, --abort or --revert")
    if pool and "worker" not in roles:
        raise UsageError("--pool names worker pools and goes with --workers or --all")
    wish = Wish(
        "",
        batch=batch,
        strategy=_one_of("--strategy", strategy, STRATEGIES),
        surge=surge,
        canary=canary,
        bake_seconds=duration("--bake", bake),
        drain_seconds=duration("--drain-deadline", drain_deadline) if drain_deadline else 0.0,
        wait=_one_of("--on-deadline", on_deadline, ("interrupt", "wait")) == "wait",
        stay=_one_of("--on-failure", on_failure, ("revert", "stop")) == "stop",
        gate_commands=tuple(gate_command),
        gate_promql=tuple(_promql(text) for text in gate_promql),
        force=force,
    )
    with client.connect(env) as c:
        if roles:
            ids = _file(c, _targets(c, roles, pool), release, wish, only_plan=only_plan, yes=yes, as_json=as_json)
        else:
            ids = follow.under_way(c, roll_id)
        if abort:
            _ask_abort(c, ids, revert=False)
        if resume:
            follow.check_abandoned(c, ids)
        if revert:
            ids = _revert(c, ids, yes=yes, as_json=as_json)
        if ids:
            follow.follow(c, ids, drive=drive or resume, as_json=as_json)


def duration(option: str, text: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `2h`. Raises UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip())
    if found is None or found[2] not in _UNITS:
        raise UsageError(f"{option} {text!r} is no duration", f"{option} 90s, {option} 10m, {option} 2h")
    return float(found[1]) * _UNITS[found[2]]


def _one_of(option: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise UsageError(f"{option} is {' or '.join(known)}, not {value!r}")
    return value


def _promql(text: str) -> tuple[str, str]:
    url, _, query = text.strip().partition(" ")
    if not url.startswith(("http://", "https://")) or not query.strip():
        raise UsageError(f"--gate-promql {text!r} is not a URL and a query", "--gate-promql 'http://prom:9090 up == 1'")
    return url, query.strip()


# --- filing ---------------------------------------------------------------------------------------------------


def _file(
    c: Client,
    facts: Mapping[Target, Facts],
    release: str,
    wish: Wish,
    *,
    only_plan: bool,
    yes: bool,
    as_json: bool,
) -> list[int]:
    """Plan, show, ask, and write the wishes down in one transaction; the ids, none if there is nothing to do."""
    chosen, facts = _checked(c, release, facts)
    if not only_plan:
        with c.engine.connect() as connection:
            for role, name in facts:
                rollouts.refuse_second(connection, role, [name])
    wish = dataclasses.replace(
        wish, release=chosen.id, drain_seconds=wish.drain_seconds or float(c.settings.drain_seconds)
    )
    wishes = {t: dataclasses.replace(wish, before=f.before(chosen.id)) for t, f in facts.items()}
    plans = {t: plan(f, wishes[t]) for t, f in facts.items()}
    if only_plan and as_json:
        output.print_json(_plan_json(wish, plans))
        return []
    if not any(plans.values()):
        output.note(f"nothing to do: every {_named(plans)} runs {chosen.id}")
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
        return _create(connection, wishes, plans)


def _create(connection: Connection, wishes: Mapping[Target, Wish], plans: Mapping[Target, Sequence[Step]]) -> list[int]:
    """The rollouts; those of one role wait for those of the role before it."""
    made: dict[str, list[int]] = {}
    for role in ROLES:
        before = [i for ids in made.values() for i in ids]
        made[role] = [
            rollouts.create(
                connection,
                role=role,
                pool=pool,
                release=wishes[role, pool].release,
                strategy=wishes[role, pool].strategy,
                wish={**vars(wishes[role, pool]), "after": before},
                steps=[(s.action, s.args) for s in steps],
                who=client.who(),
            )
            for (of, pool), steps in plans.items()
            if of == role and steps
        ]
    return [i for ids in made.values() for i in ids]


def _checked(c: Client, release: str, facts: Mapping[Target, Facts]) -> tuple[ReleaseView, dict[Target, Facts]]:
    """The release, and the facts with what its migrations are to the schema.

    Raises UsageError for one that is not known, SluiceError for one that cannot be fetched, RefusedError for one that
    is not what was built and signed.
    """
    with c.engine.connect() as connection:
        chosen = rollouts.find_release(connection, release)
    archive = published.fetch(c.artifacts(), chosen.id, trusted(c.settings.release_key))
    with c.engine.connect() as connection:
        found = schema.compare(archive, connection)
    return chosen, {t: dataclasses.replace(f, schema=found) for t, f in facts.items()}


def _targets(c: Client, roles: Sequence[str], pools: Sequence[str]) -> dict[Target, Facts]:
    """The facts of these roles' pools. Raises UsageError for a pool that does not exist."""
    cloud = Cloud(c.settings.region)
    out: dict[Target, Facts] = {}
    for role in roles:
        names = _pools(c, cloud, pools) if role == "worker" else [role]
        for name in names:
            out[role, name] = LiveFleet(c.engine, cloud, c.settings, role, name).facts()
    return out


def _pools(c: Client, cloud: Cloud, pools: Sequence[str]) -> list[str]:
    prefix = group_name(c.env, "worker", "")
    known = sorted(g.name.removeprefix(prefix) for g in cloud.groups(prefix))
    if not known:
        raise UsageError(f"{c.env} has no worker pools", f"`deployctl infra apply --env {c.env}` makes them")
    for name in pools:
        if name not in known:
            raise UsageError(f"{c.env} has no worker pool {name!r}", f"its pools are {', '.join(known)}")
    return list(dict.fromkeys(pools or known))


def _named(targets: Mapping[Target, Any]) -> str:
    """`worker of cpu, default`, `scheduler`, or both."""
    roles = list(dict.fromkeys(role for role, _ in targets))
    pools = ", ".join(pool for role, pool in targets if role == "worker")
    return " and ".join(f"worker of {pools}" if role == "worker" else role for role in roles)


def _show(plans: Mapping[Target, Sequence[Step]], facts: Mapping[Target, Facts], title: str) -> None:
    rows = []
    for target, steps in plans.items():
        name = target[1]
        if not steps:
            rows.append((name, "", "nothing to do", ""))
        running = {n.instance_id: n.running for n in facts[target].nodes}
        for number, step in enumerate(steps, 1):
            tasks = (
                sum(running.get(i, 0) for i in step.args.get("instances", []))
                if step.action in ("drain", "order")
                else ""
            )
            rows.append((name, str(number), step.text(), str(tasks)))
    output.print_table(("pool", "#step", "~what", "?#tasks running"), rows, title=title)


def _plan_json(wish: Wish, plans: Mapping[Target, Sequence[Step]]) -> dict[str, Any]:
    pools = {
        name: [{"action": s.action, "args": s.args, "text": s.text()} for s in steps]
        for (_, name), steps in plans.items()
    }
    return {"release": wish.release, "strategy": wish.strategy, "pools": pools}


# --- stopping -------------------------------------------------------------------------------------------------


def _ask_abort(c: Client, ids: Sequence[int], *, revert: bool) -> None:
    with c.engine.begin() as connection:
        for roll_id in ids:
            if not rollouts.ask_abort(connection, roll_id, client.who(), revert=revert):
                state = rollouts.get(connection, roll_id)
                what = "is turning back already" if state.state == "running" else f"has {state.state} already"
                output.note(f"roll {roll_id} {what}")


def _revert(c: Client, ids: Sequence[int], *, yes: bool, as_json: bool) -> list[int]:
    """Stop what runs and have it taken back; take back what has ended. The rolls to follow."""
    with c.engine.connect() as connection:
        found = [rollouts.get(connection, i) for i in ids]
    running, ended = [r.id for r in found if r.state == "running"], [r for r in found if r.state != "running"]
    _ask_abort(c, running, revert=True)
    out = list(running)
    for r in ended:
        wish = Wish.of({**r.wish, "release": r.release})
        if not wish.before:
            raise RefusedError(
                f"roll {r.id} does not say what {r.pool} ran before",
                f"`deployctl release list --env {c.env}`, then `deployctl roll --release`",
            )
        back = dataclasses.replace(wish, canary=0, bake_seconds=0.0, gate_commands=(), gate_promql=(), stay=True)
        facts = {(r.role, r.pool): LiveFleet(c.engine, Cloud(c.settings.region), c.settings, r.role, r.pool).facts()}
        out += _file(c, facts, wish.before, back, only_plan=False, yes=yes, as_json=as_json)
    return out
