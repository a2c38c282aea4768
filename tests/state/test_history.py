"""The history's figures: what ran during a change, what was handed on, and what was lost."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from runner.state import history, rollouts
from runner.state.history import Tasks
from runner.state.transitions import interrupt_node

from .conftest import World, task


def roll(world: World, *instances: str) -> int:
    """A roll that takes these instances out, up to its drain or to its end."""

    def file(c: Any) -> int:
        steps = [("tag", {"before": "r1"}), ("drain", {"instances": list(instances)})]
        number = rollouts.create(
            c, role="worker", pool="default", release="r2", strategy="replace", wish={}, steps=steps, who="me"
        )
        for seq in (1, 2):
            rollouts.start_step(c, number, seq, {})
        return number

    return int(world.do(file))


def lose(world: World, task_instance: int) -> None:
    """What must not happen: a task is not running any more and nobody wrote down why."""
    world.do(
        lambda c: c.execute(
            text("UPDATE task_instance SET state = 'ready', lease_token = NULL WHERE id = :id"), {"id": task_instance}
        )
    )


def test_what_runs_during_a_push_is_counted_and_followed(world: World) -> None:
    # Given three tasks that run while another version becomes active
    world.dag(task("a"), task("b"), task("c"))
    world.node()
    world.run()
    first, second, third = world.take()
    world.dag(task("x"), dag_id="e")

    def pushed() -> Tasks | None:
        return next(c for c in world.do(history.code) if c.target == "e").tasks

    # Then none is lost while they run, nor when they end as they may
    assert pushed() == Tasks(3, 0, 0)
    world.end(first)
    world.end(second, "failed", error="no")
    assert pushed() == Tasks(3, 0, 0)
    # But one that vanishes is
    lose(world, third.task_instance)
    assert pushed() == Tasks(3, 0, 1)


def test_a_roll_counts_the_tasks_of_the_nodes_that_it_took_out(world: World) -> None:
    # Given two nodes, one of which is taken out while it runs three tasks
    world.dag(*(task(f"t{i}") for i in range(5)))
    world.node("n1", slots=3)
    world.node("n2", slots=3)
    world.run()
    claims = [world.claim(m, "n1" if i < 3 else "n2") for i, m in enumerate(world.dispatch())]
    assert all(claims)
    number = roll(world, "n1")
    # When one ends, and the others are handed on when the machine goes, and another node goes on with its own
    world.end(claims[0])  # type: ignore[arg-type]
    world.do(lambda c: interrupt_node(c, "n1", "its time was over"))
    world.end(claims[4])  # type: ignore[arg-type]
    world.do(lambda c: rollouts.finish(c, number, "succeeded", {"before": "r1"}))
    # Then the roll has three of them in its line, of which none is lost
    (line,) = world.do(history.rolls)
    assert (line.id, line.target, line.before, line.after) == (f"roll-{number}", "worker/default", "r1", "r2")
    assert line.tasks == Tasks(3, 2, 0) and line.seconds is not None


def test_a_roll_that_loses_a_task_says_so(world: World) -> None:
    world.dag(task("a"), task("b"))
    world.node("n1")
    world.run()
    assert len(world.take()) == 2
    roll(world, "n1")
    (line,) = world.do(history.rolls)
    assert line.tasks == Tasks(2, 0, 0) and line.state == "running" and line.seconds is None
    # When the machine is gone and nobody has handed its tasks on, then they are lost
    world.do(lambda c: c.execute(text("UPDATE node SET state = 'gone' WHERE node_id = 'n1'")))
    (line,) = world.do(history.rolls)
    assert line.tasks == Tasks(2, 0, 2)
    # When both are handed on, then none is
    world.do(lambda c: interrupt_node(c, "n1", "the instance is terminated"))
    (line,) = world.do(history.rolls)
    assert line.tasks == Tasks(2, 2, 0)


def test_a_span_counts_what_began_or_ended_in_it(world: World) -> None:
    world.dag(task("a"), task("b"))
    world.node()
    world.run()
    first, second = world.take()
    world.end(first)

    def spanned() -> Tasks:
        since, until = world.do(lambda c: c.execute(text("SELECT now() - interval '1 h', clock_timestamp()")).one())
        return world.do(lambda c: history.tasks_between(c, since, until))  # type: ignore[no-any-return]

    assert spanned() == Tasks(2, 0, 0)
    lose(world, second.task_instance)
    assert spanned() == Tasks(2, 0, 1)


def test_only_the_newest_change_of_a_thing_is_its_newest(world: World) -> None:
    world.dag(task("a"))
    (change,) = world.do(history.code)
    assert world.do(lambda c: history.later(c, change)) is None
    first = roll(world, "n1")
    world.do(lambda c: rollouts.finish(c, first, "succeeded"))
    second = roll(world, "n1")
    one = world.do(lambda c: history.find(c, "roll", first))
    assert world.do(lambda c: history.later(c, one)) is None  # the second is not over
    world.do(lambda c: rollouts.finish(c, second, "succeeded"))
    assert world.do(lambda c: history.later(c, one)).id == f"roll-{second}"
