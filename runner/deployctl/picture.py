"""A picture of replays: tasks that wait and nodes over time, and how long tasks waited."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.rollout.autoscale.simulate import Result
from runner.settings import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which those who see colours differently can tell apart. The first policy stands out.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F")
_POINTS = 1200
_WORDS = "#333333"
_LEAST_WAIT = 0.1  # seconds; the axis is logarithmic


def check(path: Path) -> None:
    """Raise UsageError for a path that cannot become a picture."""
    if path.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"{path} is neither .svg nor .png", "name the picture by what it is to be")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no directory {path.parent}")


def draw(results: Sequence[Result], price: float, path: Path) -> None:
    """Write the picture of these replays; price in dollars a node-hour."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "sluice",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": _WORDS,
        "axes.labelcolor": _WORDS,
        "axes.edgecolor": "#BBBBBB",
        "xtick.color": _WORDS,
        "ytick.color": _WORDS,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#EEEEEE",
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(11, 6.4), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(1.9, 1), height_ratios=(1, 1))
        waiting = figure.add_subplot(grid[0, 0])
        nodes = figure.add_subplot(grid[1, 0], sharex=waiting)
        waits = figure.add_subplot(grid[0, 1])
        costs = figure.add_subplot(grid[1, 1])
        for i, result in reversed(list(enumerate(results))):
            look: dict[str, Any] = {"color": _COLOURS[i % len(_COLOURS)], "linewidth": 2.0 if i == 0 else 1.2}
            _over_time(waiting, nodes, result, look)
            _distribution(waits, result, look)
        _costs(costs, results, price)
        _name(waiting, nodes, waits, results)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _over_time(waiting: Axes, nodes: Axes, result: Result, look: dict[str, Any]) -> None:
    step = max(1, len(result.timeline) // _POINTS)
    # Of each stretch that becomes one point, what matters is its most: a short peak must not fall through.
    stretches = [result.timeline[i : i + step] for i in range(0, len(result.timeline), step)]
    hours = [s[0].at / 3600 for s in stretches]
    waiting.plot(hours, [max(m.waiting for m in s) for s in stretches], label=result.policy, **look)
    nodes.step(hours, [max(m.nodes for m in s) for s in stretches], where="post", **look)


def _distribution(axes: Axes, result: Result, look: dict[str, Any]) -> None:
    n = len(result.waits)
    step = max(1, n // _POINTS)
    picked = [*range(0, n, step), n - 1]
    # From the left edge: those who never waited are a share too.
    xs = [_LEAST_WAIT, *(max(result.waits[i], _LEAST_WAIT) for i in picked)]
    axes.step(xs, [0.0, *(100 * (i + 1) / n for i in picked)], where="post", **look)


def _costs(axes: Axes, results: Sequence[Result], price: float) -> None:
    names = [r.policy for r in results]
    dollars = [r.node_hours * price for r in results]
    bars = axes.barh(names, dollars, color=[_COLOURS[i % len(_COLOURS)] for i in range(len(results))], height=0.6)
    labels = [f"${d:,.2f}, {r.node_hours:.1f} h" for d, r in zip(dollars, results, strict=True)]
    axes.bar_label(bars, labels, padding=4, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.45)
    axes.grid(visible=False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title("What the nodes cost")


def _name(waiting: Axes, nodes: Axes, waits: Axes, results: Sequence[Result]) -> None:
    waiting.set_title("Tasks that wait")
    waiting.set_ylim(0, 1.15 * max(1, *(m.waiting for r in results for m in r.timeline)))  # room for the names
    handles, labels = waiting.get_legend_handles_labels()
    waiting.legend(
        handles[::-1], labels[::-1], frameon=False, loc="upper right", fontsize=8, ncols=len(results), columnspacing=1.2
    )
    waiting.tick_params(labelbottom=False)
    nodes.set_title("Nodes that are paid for")
    nodes.set_ylim(bottom=0)
    nodes.set_xlim(0, max(r.seconds for r in results) / 3600)
    nodes.set_xlabel("hours")
    waits.set_title("Percent of the tasks that began within …")
    waits.set_xscale("log")
    waits.set_xlim(left=_LEAST_WAIT)
    waits.set_ylim(0, 102)
    marks = {0.1: "at once", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36000: "10 h"}
    longest = max(r.waits[-1] for r in results)
    shown = {x: word for x, word in marks.items() if x <= max(longest, 10)}
    waits.set_xticks(list(shown), list(shown.values()))
    waits.minorticks_off()
