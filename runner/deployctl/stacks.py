"""Which Terraform stack stands on which: the order to build them in and to take them down. Pure."""

from __future__ import annotations

import graphlib
from collections.abc import Collection, Iterable, Mapping

from runner.settings import UsageError

Graph = Mapping[str, frozenset[str]]

_GRAPH: Graph = {
    "state": frozenset(),
    "network": frozenset(),
    "data": frozenset({"network"}),
    "control": frozenset({"network", "data"}),
    "workers": frozenset({"network", "data"}),
    "monitoring": frozenset({"network", "data", "control"}),
    "warehouse": frozenset({"network", "data"}),
    "replication": frozenset({"network", "data", "warehouse"}),
}
# What no environment can do without. Any other stack belongs to an environment that has a .tfvars file for it.
CORE = ("network", "data", "control", "workers")
# It holds the state of all the others: it goes last, with the environment (`deployctl env delete`).
STATE = "state"


def graph(*, engines: bool = False) -> Graph:
    """Each stack with the stacks whose state it reads.

    `engines` says that database and broker exist outside the data stack (the variable `engines` is given):
    then control and workers do not wait for it.
    """
    if not engines:
        return _GRAPH
    return {n: needs - {"data"} if n in ("control", "workers") else needs for n, needs in _GRAPH.items()}


def select(names: Iterable[str], known: Graph, default: Collection[str] | None = None) -> list[str]:
    """The stacks asked for, in building order, each once; none asked for means `default` (all, unless given).

    Raises UsageError for a name that is not a stack.
    """
    wanted = list(names)
    for name in wanted:
        if name not in known:
            raise UsageError(f"there is no stack {name!r}", f"the stacks are {', '.join(known)}")
    chosen = set(wanted or (known if default is None else default))
    return [name for level in levels(known, known) for name in level if name in chosen]


def levels(names: Collection[str], known: Graph, *, reverse: bool = False) -> list[list[str]]:
    """Group the stacks so that each group only stands on earlier ones: a group is worked on side by side.

    Stacks outside `names` order nothing. `reverse` is the order to destroy in: dependents first.
    """
    chosen = set(names)
    sorter = graphlib.TopologicalSorter({n: _all_needs(n, known) & chosen for n in known if n in chosen})
    sorter.prepare()
    out: list[list[str]] = []
    while sorter.is_active():
        ready = sorter.get_ready()
        out.append([n for n in known if n in ready])
        sorter.done(*ready)
    return out[::-1] if reverse else out


def missing(names: Collection[str], standing: Collection[str], known: Graph) -> dict[str, list[str]]:
    """For each chosen stack that cannot be built, the stacks it needs that neither stand nor are chosen."""
    there = set(names) | set(standing)
    gaps = {n: [d for d in known if d in known[n] and d not in there] for n in names}
    return {n: needs for n, needs in gaps.items() if needs}


def dependents(name: str, known: Graph) -> list[str]:
    """Every stack that stands on this one, directly or not."""
    return [n for n in known if name in _all_needs(n, known)]


def _all_needs(name: str, known: Graph) -> frozenset[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        for need in known[todo.pop()] - found:
            found.add(need)
            todo.append(need)
    return frozenset(found)
