from __future__ import annotations

import re
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from runner.web import graph


@st.composite
def dags(draw: st.DrawFn) -> dict[str, list[str]]:
    """Each task may depend on those before it; names with numbers and parts, so that some are alike."""
    n = draw(st.integers(1, 70))
    stems = draw(st.lists(st.sampled_from(["load", "a.b", "x-1", "check_all", "t"]), min_size=n, max_size=n))
    names = [f"{stem}_{i}" for i, stem in enumerate(stems)]
    return {
        name: draw(st.lists(st.sampled_from(names[:i]), max_size=3, unique=True)) if i else []
        for i, name in enumerate(names)
    }


@settings(max_examples=40, deadline=None)
@given(dags())
def test_every_task_is_drawn_once_and_lines_go_forward(upstream: dict[str, list[str]]) -> None:
    drawing = graph.draw(upstream, dict.fromkeys(upstream, "success"))

    assert sorted(t for b in drawing.boxes for t in b.tasks) == sorted(upstream)
    layer = {t: b.layer for b in drawing.boxes for t in b.tasks}
    for task, ups in upstream.items():
        for up in ups:
            assert layer[up] < layer[task]
    if len(upstream) <= graph.UNFOLDED_MAX:
        assert all(b.count == 1 for b in drawing.boxes)
    for box in drawing.boxes:
        assert box.x >= 0
        assert box.x + graph.BOX_WIDTH <= drawing.width
        assert box.y + graph.BOX_HEIGHT <= drawing.height
    places = [(b.x, b.y) for b in drawing.boxes]
    assert len(set(places)) == len(places)
    for line in drawing.lines:
        xs = [float(x) for x in re.findall(r"[MCH ]([\d.]+)", line)]
        assert xs


def test_a_diamond_has_three_layers() -> None:
    drawing = graph.draw({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]})

    assert {b.label: b.layer for b in drawing.boxes} == {"a": 0, "b": 1, "c": 1, "d": 2}
    assert len(drawing.lines) == 4
    b, c = (next(x for x in drawing.boxes if x.label == name) for name in "bc")
    assert abs(b.y - c.y) == graph.BOX_HEIGHT + graph.GAP_Y


def test_hundreds_of_alike_tasks_share_a_box_with_their_states() -> None:
    loads = [f"load.{city}.{i:03d}" for city in ("rome", "oslo") for i in range(350)]
    upstream = {"list": [], **{t: ["list"] for t in loads}, "check": loads}
    states = {**dict.fromkeys(loads, "success"), "load.oslo.007": "failed", "list": "success"}

    began = time.perf_counter()
    drawing = graph.draw(upstream, states)

    assert time.perf_counter() - began < 0.5
    assert [(b.label, b.count) for b in drawing.boxes] == [
        ("list", 1),
        ("load.rome…", 350),
        ("load.oslo…", 350),
        ("check", 1),
    ]
    assert drawing.boxes[2].states == {"failed": 1, "success": 349}
    assert drawing.boxes[3].states == {"waiting": 1}
    assert drawing.boxes[2].segments(350.0) == [("failed", 0.0, 1.0), ("success", 1.0, 349.0)]


def test_a_wide_layer_of_unlike_tasks_is_bounded() -> None:
    upstream: dict[str, list[str]] = {chr(97 + i) * 3: [] for i in range(26)} | {chr(65 + i) * 3: [] for i in range(26)}

    boxes = graph.draw(upstream).boxes

    assert len(boxes) == graph.LAYER_MAX
    assert boxes[-1].label == "other tasks"


def test_no_task_no_drawing() -> None:
    assert graph.draw({}).boxes == []
