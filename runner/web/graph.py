"""A DAG drawn as layered boxes: which box a task is in, and where boxes and lines go. Pure.

Layers are longest paths from the roots (the first step of Sugiyama, Tagawa and Toda 1981); within a layer, boxes are
ordered by the mean position of their neighbours, a few sweeps in both directions. A DAG with many tasks is folded
first: tasks of one layer whose names differ in a number or a last part share a box.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

UNFOLDED_MAX = 40  # tasks; up to here each has its own box
LAYER_MAX = 12  # boxes in one layer
BOX_WIDTH, BOX_HEIGHT = 172, 34
GAP_X, GAP_Y = 56, 12
MARGIN = 8

_NUMBER = re.compile(r"[._\-]*\d+$")
_LAST_PART = re.compile(r"[._\-][^._\-]+$")


@dataclass
class Box:
    """One task, or several folded into one box. x, y is the upper left corner, in SVG units."""

    key: str
    label: str
    tasks: list[str]
    layer: int
    x: float = 0.0
    y: float = 0.0
    states: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Tasks in this box."""
        return len(self.tasks)

    def segments(self, width: float = BOX_WIDTH) -> list[tuple[str, float, float]]:
        """(state, x, width) of a bar that shows how many of the tasks are in which state."""
        out, x = [], 0.0
        total = sum(self.states.values()) or 1
        for state, n in self.states.items():
            w = width * n / total
            out.append((state, round(x, 2), round(w, 2)))
            x += w
        return out


@dataclass(frozen=True)
class Drawing:
    """Boxes, SVG path data of the lines, and the size of it all."""

    boxes: list[Box]
    lines: list[str]
    width: float
    height: float


def layers(upstream: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The layer of each task: 0 for a root, else one more than its farthest upstream task."""
    waiting = {t: sum(u in upstream for u in set(ups)) for t, ups in upstream.items()}
    downstream: dict[str, set[str]] = defaultdict(set)
    for task, ups in upstream.items():
        for up in ups:
            downstream[up].add(task)
    layer = {t: 0 for t, n in waiting.items() if n == 0}
    todo = list(layer)
    while todo:
        task = todo.pop()
        for down in downstream[task]:
            layer[down] = max(layer.get(down, 0), layer[task] + 1)
            waiting[down] -= 1
            if waiting[down] == 0:
                todo.append(down)
    return layer


def fold(upstream: Mapping[str, Sequence[str]]) -> list[Box]:
    """The boxes, unplaced. Tasks share one when the DAG is large and they are alike."""
    layer = layers(upstream)
    if len(layer) <= UNFOLDED_MAX:
        return [Box(t, t, [t], layer[t]) for t in upstream if t in layer]
    by_layer: dict[int, list[str]] = defaultdict(list)
    for task in upstream:
        if task in layer:
            by_layer[layer[task]].append(task)
    boxes: list[Box] = []
    for n, tasks in sorted(by_layer.items()):
        groups = [(t, [t]) for t in tasks]
        for pattern in (_NUMBER, _LAST_PART, _LAST_PART):
            if len(groups) > LAYER_MAX or pattern is _NUMBER:
                groups = _merge(groups, pattern)
        if len(groups) > LAYER_MAX:
            groups.sort(key=lambda g: -len(g[1]))
            rest = [t for _, ts in groups[LAYER_MAX - 1 :] for t in ts]
            groups = [*groups[: LAYER_MAX - 1], ("other tasks", rest)]
        for label, members in groups:
            name = label if len(members) == 1 or label == "other tasks" else f"{label}…"
            boxes.append(Box(f"{n}/{label}", members[0] if len(members) == 1 else name, members, n))
    return boxes


def _merge(groups: list[tuple[str, list[str]]], pattern: re.Pattern[str]) -> list[tuple[str, list[str]]]:
    """Groups whose labels are alike up to the pattern become one; fewer than three alike stay apart."""
    alike: Counter[str] = Counter()
    for label, _ in groups:
        alike[pattern.sub("", label)] += 1
    merged: dict[str, list[str]] = {}
    for label, tasks in groups:
        short = pattern.sub("", label)
        merged.setdefault(short if short and alike[short] >= 3 else label, []).extend(tasks)
    return list(merged.items())


def draw(upstream: Mapping[str, Sequence[str]], states: Mapping[str, str] | None = None) -> Drawing:
    """Fold, order and place. `states` colours the boxes by the state of each task."""
    boxes = fold(upstream)
    if not boxes:
        return Drawing([], [], 0, 0)
    home = {task: box.key for box in boxes for task in box.tasks}
    by_key = {box.key: box for box in boxes}
    edges = {
        (home[up], home[task])
        for task, ups in upstream.items()
        for up in ups
        if up in home and task in home and home[up] != home[task]
    }
    rows: dict[int, list[str]] = defaultdict(list)
    for box in boxes:
        rows[box.layer].append(box.key)
    chains = _thread(by_key, sorted(edges), rows)
    _order(rows, chains)
    place = _place(rows, by_key)
    if states is not None:
        order = ("failed", "running", "queued", "ready", "upstream_failed", "success", "skipped", "waiting")
        for box in boxes:
            count = Counter(states.get(t, "waiting") for t in box.tasks)
            box.states = {s: count[s] for s in order if count[s]}
    width = max(b.x for b in boxes) + BOX_WIDTH + MARGIN
    height = max(y for _, y in place.values()) + BOX_HEIGHT / 2 + MARGIN
    return Drawing(boxes, [_line(chain, place, by_key) for chain in chains], width, height)


def _thread(boxes: Mapping[str, Box], edges: Sequence[tuple[str, str]], rows: dict[int, list[str]]) -> list[list[str]]:
    """Each edge as a chain with one point in every layer it crosses, so that lines pass between boxes."""
    chains = []
    for n, (start, end) in enumerate(edges):
        points = []
        for layer in range(boxes[start].layer + 1, boxes[end].layer):
            point = f"\0{n}/{layer}"
            rows[layer].append(point)
            points.append(point)
        chains.append([start, *points, end])
    return chains


def _order(rows: dict[int, list[str]], chains: Sequence[Sequence[str]]) -> None:
    before: dict[str, list[str]] = defaultdict(list)
    after: dict[str, list[str]] = defaultdict(list)
    for chain in chains:
        for a, b in pairwise(chain):
            after[a].append(b)
            before[b].append(a)
    for sweep in range(6):
        neighbours = before if sweep % 2 == 0 else after
        for layer in sorted(rows, reverse=sweep % 2 == 1):
            # Relative positions, so that a long layer does not pull a short one down.
            at = {key: (i + 0.5) / len(row) for row in rows.values() for i, key in enumerate(row)}
            mean = {k: _mean([at[x] for x in neighbours[k]], at[k]) for k in rows[layer]}
            rows[layer].sort(key=lambda k: mean[k])


def _mean(values: list[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _place(rows: Mapping[int, list[str]], boxes: Mapping[str, Box]) -> dict[str, tuple[float, float]]:
    """(x of the left edge, y of the middle) of each box and point; layers are centred on one another."""
    heights = {k: BOX_HEIGHT if k in boxes else 8 for row in rows.values() for k in row}
    tall = {n: sum(heights[k] for k in row) + GAP_Y * (len(row) - 1) for n, row in rows.items()}
    place: dict[str, tuple[float, float]] = {}
    for n, row in rows.items():
        y = MARGIN + (max(tall.values()) - tall[n]) / 2
        for key in row:
            x = MARGIN + n * (BOX_WIDTH + GAP_X)
            place[key] = (x, y + heights[key] / 2)
            if key in boxes:
                boxes[key].x, boxes[key].y = x, y
            y += heights[key] + GAP_Y
    return place


def _line(chain: Sequence[str], place: Mapping[str, tuple[float, float]], boxes: Mapping[str, Box]) -> str:
    x, y = place[chain[0]]
    x += BOX_WIDTH
    parts = [f"M{x:g} {y:g}"]
    for key in chain[1:]:
        to_x, to_y = place[key]
        bend = (to_x - x) / 2
        parts.append(f"C{x + bend:g} {y:g} {to_x - bend:g} {to_y:g} {to_x:g} {to_y:g}")
        if key not in boxes:
            to_x += BOX_WIDTH
            parts.append(f"H{to_x:g}")
        x, y = to_x, to_y
    return "".join(parts)
