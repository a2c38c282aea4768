from __future__ import annotations

import io

import pytest
from rich.console import Console

from runner.deployctl.operations import StackEvent
from runner.deployctl.progress import Display, describe


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (StackEvent("data", "plan", done=7), "planning, 7 resources read"),
        (StackEvent("data", "planned", "3 to add"), "planned: 3 to add"),
        (StackEvent("data", "apply", "starting", total=3), "applying"),
        (StackEvent("data", "apply", "creating", "aws_vpc.a", 0, 3), "creating aws_vpc.a"),
        (StackEvent("data", "apply", "creating", "aws_vpc.a", 2, 3), "2 of 3 done, creating aws_vpc.a"),
        (StackEvent("data", "applied", "3 added"), "3 added"),
        (StackEvent("data", "failed", "aws_vpc.a: no"), "failed: aws_vpc.a: no"),
    ],
)
def test_each_step_in_a_few_words(event: StackEvent, said: str) -> None:
    assert describe(event) == said


def test_without_a_terminal_each_phase_is_one_line() -> None:
    # Given a run with many steps in one phase
    file = io.StringIO()
    with Display(["network", "data"], Console(file=file, width=200)) as display:
        for done in range(50):
            display(StackEvent("data", "apply", "creating", "aws_x.y[0]", done, 50, seconds=done / 10))
        display(StackEvent("data", "applied", "50 added", seconds=65))
        display(StackEvent("network", "failed", "[red]not markup[/red]"))
    # Then the lines are as many as the phases, and what comes from outside is never read as markup
    assert file.getvalue().splitlines() == [
        "data     creating aws_x.y[0]",
        "data     50 added (1 min 5 s)",
        "network  failed: [red]not markup[/red]",
    ]


def test_on_a_terminal_every_stack_has_its_line_from_the_start() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True)
    with Display(["network", "data"], console) as display:
        display(StackEvent("network", "applied", "1 added"))
        with display.paused():
            console.print("a question")
    text = file.getvalue()
    assert "waiting" in text and "1 added" in text and "a question" in text
