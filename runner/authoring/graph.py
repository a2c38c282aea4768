"""Pure graph questions: is there a circle, and in which order can the tasks run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


def find_cycle(upstream: Mapping[str, Collection[str]]) -> list[str] | None:
    """A circle as a path in the direction of the work, first task named again at the end; None without one."""
    done: set[str] = set()
    for root in upstream:
        if root in done:
            continue
        # An explicit stack: a chain of thousands of tasks is deeper than Python's recursion limit.
        path = {root: None}
        rest = [iter(upstream[root])]
        while rest:
            for other in rest[-1]:
                if other in path:
                    nodes = list(path)
                    return [other, *reversed(nodes[nodes.index(other) :])]
                if other not in done:
                    path[other] = None
                    rest.append(iter(upstream.get(other, ())))
                    break
            else:
                rest.pop()
                done.add(path.popitem()[0])
    return None


def topological_order(upstream: Mapping[str, Collection[str]]) -> list[str]:
    """Every task after all its upstream tasks; among equals in the order given. There must be no circle."""
    missing = {node: len(before) for node, before in upstream.items()}
    downstream: dict[str, list[str]] = {node: [] for node in upstream}
    for node, before in upstream.items():
        for other in before:
            downstream[other].append(node)
    ready = [node for node, count in missing.items() if count == 0]
    for node in ready:  # grows while it is walked
        for other in downstream[node]:
            missing[other] -= 1
            if missing[other] == 0:
                ready.append(other)
    return ready


def reachable(edges: Mapping[str, Collection[str]], start: Iterable[str]) -> list[str]:
    """Every task one comes to from `start` along the edges, in the order they are met."""
    seen: dict[str, None] = {}
    todo = list(start)
    while todo:
        for task in edges.get(todo.pop(), ()):
            if task not in seen:
                seen[task] = None
                todo.append(task)
    return list(seen)
