"""Backfills: what is planned, how many run at once, and how they are paused and cancelled."""

from __future__ import annotations

import datetime as dt

import pytest
from sqlalchemy import Engine, text

from runner.scheduler import backfill
from runner.scheduler.backfill import Wish
from runner.settings import RefusedError, UsageError
from runner.state import backfills, transitions
from runner.state.transitions import Outcome
from tests.state.conftest import World, task

DAY = dt.timedelta(days=1)
FIRST = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


@pytest.fixture
def world(engine: Engine) -> World:
    w = World(engine)
    w.dag(task("load"), task("report", "load"), schedule="0 0 * * *")
    w.node(slots=100)
    return w


def wish(days: int = 10, **options: object) -> Wish:
    return Wish("d", FIRST, FIRST + (days - 1) * DAY, **options)  # type: ignore[arg-type]


def start(world: World, w: Wish) -> int:
    number = world.do(lambda c: backfill.start(c, w, backfill.plan(c, w), by="test"))
    assert number is not None
    return int(number)


def advance(world: World) -> int:
    """One look of a scheduler; how many runs it started."""
    found = world.do(backfills.advance)
    return 0 if found is None else int(found[1])


def end_all(world: World, result: str = "success") -> None:
    """Let a worker do all that is ready."""
    while claims := world.take():
        for claim in claims:
            outcome = Outcome(claim.task_instance, claim.token, result, retry=False)  # type: ignore[arg-type]
            world.do(lambda c, o=outcome: transitions.finish(c, [o]))


def test_only_what_is_missing_is_run_and_never_more_at_once_than_wanted(world: World) -> None:
    # Given a run of the third day
    world.run(date=FIRST + 2 * DAY)
    end_all(world)
    number = start(world, wish(max_active=4))
    # When the schedulers move it on, then never more than four are active, oldest first
    assert advance(world) == 4
    assert advance(world) == 0
    dates = world.do(lambda c: c.execute(text("SELECT logical_date FROM dag_run WHERE state = 'running' ORDER BY 1")))
    assert [d.logical_date for d in dates] == [FIRST, FIRST + DAY, FIRST + 3 * DAY, FIRST + 4 * DAY]
    for _ in range(5):
        end_all(world)
        advance(world)
    found = world.do(lambda c: backfills.get(c, number))
    assert (found.state, found.total, found.success, found.failed) == ("done", 9, 9, 0)
    # and the data interval of each is the timetable's
    assert world.one("SELECT count(*) FROM dag_run WHERE run_type = 'backfill' AND interval_end > interval_start") == 9


def test_the_dag_limit_holds_too_and_what_is_scheduled_goes_first(world: World) -> None:
    world.do(lambda c: c.execute(text("UPDATE dag SET max_active_runs = 3")))
    world.run(date=FIRST - DAY)
    start(world, wish())
    assert advance(world) == 2
    # A backfill's tasks come after those of ordinary runs
    sql = "SELECT max(t.priority) FROM task_instance t JOIN dag_run r ON r.id = t.run_id WHERE run_type = 'backfill'"
    assert world.one(sql) == backfill.PRIORITY


def test_failed_and_all_run_again_what_is_there(world: World) -> None:
    world.run(date=FIRST)
    end_all(world, "failed")
    world.run(date=FIRST + DAY)
    end_all(world)
    assert [i.again for i in world.do(lambda c: backfill.plan(c, wish(3, which="failed"))).instants] == [True, False]
    planned = world.do(lambda c: backfill.plan(c, wish(3, which="all", reverse=True)))
    assert [i.logical_date for i in planned.instants] == [FIRST + 2 * DAY, FIRST + DAY, FIRST]
    number = start(world, wish(3, which="all"))
    assert advance(world) == 3
    assert world.one("SELECT count(*) FROM dag_run WHERE state = 'running'") == 3
    end_all(world)
    advance(world)
    assert world.do(lambda c: backfills.get(c, number)).success == 3


def test_a_part_of_a_dag(world: World) -> None:
    start(world, wish(2, tasks="rep*"))
    advance(world)
    # Then only the task that matches is there, and waits for nothing
    assert world.one("SELECT string_agg(DISTINCT task_id || state, ',') FROM task_instance") == "reportready"
    end_all(world)
    assert world.one("SELECT count(*) FROM dag_run WHERE state = 'success'") == 2


def test_pause_resume_and_cancel(world: World) -> None:
    number = start(world, wish(max_active=2))
    advance(world)
    world.do(lambda c: backfills.switch(c, number, "paused", by="test"))
    end_all(world)
    assert advance(world) == 0
    world.do(lambda c: backfills.switch(c, number, "running", by="test"))
    assert advance(world) == 2
    found = world.do(lambda c: backfills.switch(c, number, "cancelled", by="test", kill=True))
    assert (found.state, found.active, found.waiting) == ("cancelled", 0, 6)
    with pytest.raises(RefusedError, match="is cancelled"):
        world.do(lambda c: backfills.switch(c, number, "running", by="test"))


def test_two_schedulers_start_each_run_once(world: World, engine: Engine) -> None:
    start(world, wish(max_active=10))
    with engine.begin() as one, engine.begin() as other:
        assert backfills.advance(one) == (1, 10)
        assert backfills.advance(other) is None  # the first one has its row


def test_what_makes_no_sense_is_said(world: World) -> None:
    def planning(w: Wish) -> None:
        world.do(lambda c: backfill.plan(c, w))

    with pytest.raises(UsageError, match="no DAG"):
        planning(Wish("nothing", FIRST, FIRST))
    with pytest.raises(UsageError, match=r"ends .* before it begins"):
        planning(Wish("d", FIRST, FIRST - DAY))
    with pytest.raises(UsageError, match="no task of 'd' matches 'x"):
        planning(wish(tasks="x*"))
    world.dag(task("t"), dag_id="minutely", schedule="* * * * *")
    with pytest.raises(RefusedError, match="more than 100,000 runs"):
        planning(Wish("minutely", FIRST, FIRST + 800 * DAY))
    world.dag(task("t"), dag_id="byhand")
    with pytest.raises(UsageError, match="no schedule"):
        planning(Wish("byhand", FIRST, FIRST))


def test_a_span_without_instants_runs_nothing(world: World) -> None:
    w = Wish("d", FIRST + dt.timedelta(hours=1), FIRST + dt.timedelta(hours=2))
    planned = world.do(lambda c: backfill.plan(c, w))
    assert (planned.instants, planned.left) == ([], 0)
    assert world.do(lambda c: backfill.start(c, w, planned, by="test")) is None
