"""`deployctl fleet scale`: how many nodes a pool has, by hand, within its bounds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from runner.deployctl import client, output
from runner.rollout.cloud import Cloud, group_name
from runner.rollout.facts import Group
from runner.settings import RefusedError, UsageError
from runner.state import queries
from runner.state.views import NodeRow


@dataclass(frozen=True)
class Move:
    """A pool on its way to another size. leaving: the instances that go, with how many tasks each still runs."""

    pool: str
    group: Group
    wanted: int
    leaving: tuple[tuple[str, int], ...] = ()


def scale(
    wishes: list[str] = typer.Argument(..., metavar="POOL=N...", help="So many nodes: default=4 gpu=0"),
    env: str = typer.Option(..., "--env", help="The environment."),
    only_plan: bool = typer.Option(False, "--plan", help="Show what would be done and touch nothing."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask before nodes go."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Give worker pools another number of nodes. Those that go are idle ones first, and each finishes its tasks.

    Where an autoscaler looks after the pool, it goes on from there.
    """
    wanted = parse(wishes)
    with client.connect(env) as c:
        cloud = Cloud(c.settings.region)
        prefix = group_name(env, "worker", "")
        pools = sorted(g.name.removeprefix(prefix) for g in cloud.groups(prefix))
        for name in wanted:
            if name not in pools:
                raise UsageError(
                    f"{env} has no worker pool {name!r}", f"its pools are {', '.join(pools) or 'none yet'}"
                )
        with c.engine.connect() as connection:
            nodes = queries.fleet(connection, role="worker", pools=list(wanted))
        moves = [move(p, cloud.group(group_name(env, "worker", p)), n, nodes) for p, n in wanted.items()]
        if not as_json:
            _show(moves)
        going = sum(len(m.leaving) for m in moves)
        if not only_plan and going and not yes and not output.confirm(f"Let {going} node{'s' * (going != 1)} go?"):
            raise typer.Abort
        if not only_plan:
            for m in moves:
                if m.wanted > m.group.desired:
                    cloud.set_desired(m.group.name, m.wanted)
                for instance, _ in m.leaving:  # its hook waits until the node's agent says that it is drained
                    cloud.terminate(instance, decrement=True)
    if as_json:
        output.print_json(
            [
                {"pool": m.pool, "before": m.group.desired, "after": m.wanted, "leaving": [i for i, _ in m.leaving]}
                for m in moves
            ]
        )


def parse(wishes: Sequence[str]) -> dict[str, int]:
    """Read POOL=N words. Raises UsageError for what is not, and for a pool that is named twice."""
    found: dict[str, int] = {}
    for word in wishes:
        match = re.fullmatch(r"([\w-]+)=(\d+)", word)
        if match is None:
            raise UsageError(f"{word!r} is not POOL=N", "for example default=4")
        if match[1] in found:
            raise UsageError(f"the pool {match[1]} is named twice")
        found[match[1]] = int(match[2])
    return found


def move(pool: str, group: Group, wanted: int, nodes: Sequence[NodeRow]) -> Move:
    """What has to happen for a pool to have so many nodes. Raises RefusedError outside of its bounds. Pure.

    Those go first that do not serve, then those that run the fewest tasks, then the oldest.
    """
    if not group.minimum <= wanted <= group.maximum:
        raise RefusedError(
            f"{pool}={wanted} is outside of the pool's bounds, {group.minimum} to {group.maximum}",
            f"{pool}={min(max(wanted, group.minimum), group.maximum)}, or change the pool's bounds and apply",
        )
    by_instance = {n.instance_id: n for n in nodes}

    def cost(instance: str) -> tuple[bool, int]:
        node = by_instance.get(instance)
        return (node is not None and node.state == "ready" and node.live, node.running if node else 0)

    members = [i.instance_id for i in group.instances if not i.leaving]
    leaving = sorted(members, key=cost)[: max(0, group.desired - wanted)]
    return Move(pool, group, wanted, tuple((i, cost(i)[1]) for i in leaving))


def _show(moves: Sequence[Move]) -> None:
    output.print_table(
        ("pool", "#nodes", "?#bounds", "?~who goes"),
        (
            (
                m.pool,
                f"{m.group.desired} → {m.wanted}" if m.wanted != m.group.desired else f"{m.wanted}, as it is",
                f"{m.group.minimum} to {m.group.maximum}",
                ", ".join(f"{i} ({n} task{'s' * (n != 1)})" if n else i for i, n in m.leaving),
            )
            for m in moves
        ),
    )
