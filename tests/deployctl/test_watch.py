from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from runner.deployctl.watch import _table, window


@pytest.mark.parametrize(
    ("states", "shown"),
    [
        (["pending"] * 6, [0, 1]),
        (["done", "done", "running", "pending", "pending"], [1, 2, 3]),
        (["done", "done", "failed"], [1, 2]),
        (["done"] * 17, [16]),
        ([], []),
    ],
)
def test_a_small_terminal_shows_where_the_work_is(states: list[str], shown: list[int]) -> None:
    assert list(window(states)) == shown


def test_what_is_left_out_is_counted_and_an_ended_roll_is_shown_whole() -> None:
    def step(seq: int, state: str) -> Any:
        args = {"instances": [f"i-{seq}"]}
        return SimpleNamespace(
            seq=seq, state=state, action="drain", args=args, detail={}, started_at=None, ended_at=None
        )

    def lines(state: str) -> list[str]:
        roll: Any = SimpleNamespace(id=1, pool="default", release="r", state=state, driver=None, error="")
        states = ["done"] * 5 + ["running"] + ["pending"] * 5
        console = Console(file=io.StringIO(), width=100)
        console.print(_table(roll, [step(i, s) for i, s in enumerate(states, 1)], short=True))
        assert isinstance(console.file, io.StringIO)
        return [line.strip() for line in console.file.getvalue().splitlines()]

    running = lines("running")
    assert running[2] == "4 steps done" and running[-1] == "4 more to come"
    assert [line.split()[0] for line in running[3:-1]] == ["5", "6", "7"]
    assert len(lines("failed")) == 2 + 11
