from __future__ import annotations

import datetime as dt
import threading

import pytest
from sqlalchemy import Engine, text

from runner.authoring import DAG, DagSpec, Market, Once, Sessions, TaskSpec
from runner.authoring.timetables import Cron, Dates, Timetable, TimetableError
from runner.scheduler import create_runs as create_runs_module
from runner.scheduler.create_runs import create_runs
from runner.scheduler.reap import MARGIN_SECONDS, Reaper
from runner.state import bundles, nodes, queries, transitions


def publish(engine: Engine, **options: object) -> None:
    tasks = (TaskSpec(task_id="a"),)
    specs = [DagSpec(dag_id="d", tasks=tasks, **options)]  # type: ignore[arg-type]
    with engine.begin() as c:
        bundles.register_and_activate(c, version="v1", name="b", url="", size=0, specs=specs, who="test")


def due(engine: Engine, when: str) -> None:
    with engine.begin() as c:
        create_runs(c)  # sets the first instant
        c.execute(text("UPDATE dag SET next_run_at = :w"), {"w": dt.datetime.fromisoformat(when)})


def runs(engine: Engine) -> list[dt.datetime]:
    with engine.begin() as c:
        return [r.logical_date for r in c.execute(text("SELECT logical_date FROM dag_run ORDER BY id"))]


def test_three_schedulers_and_one_tick_make_one_run(engine: Engine) -> None:
    # Given a DAG that is due
    publish(engine, schedule="@daily")
    due(engine, "2026-01-01T00:00+00:00")

    def tick() -> None:
        with engine.begin() as c:
            create_runs(c)

    # When three schedulers look at the same moment
    threads = [threading.Thread(target=tick) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    # Then there is one run, of the latest instant, and the next is in the future
    (date,) = runs(engine)
    assert dt.datetime.now(dt.UTC) - date < dt.timedelta(days=1)
    with engine.begin() as c:
        assert c.execute(text("SELECT next_run_at > now() FROM dag")).scalar()


def test_catchup_makes_every_run_that_was_missed(engine: Engine) -> None:
    yesterday = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0) - dt.timedelta(hours=5)
    publish(engine, schedule="@hourly", catchup=True, start=yesterday.isoformat())
    for _ in range(10):
        with engine.begin() as c:
            create_runs(c)
    assert runs(engine) == [yesterday + dt.timedelta(hours=h) for h in range(6)]


def test_max_active_runs_holds_the_next_one_back(engine: Engine) -> None:
    start = dt.datetime.now(dt.UTC) - dt.timedelta(hours=5)
    publish(engine, schedule="@hourly", catchup=True, start=start.isoformat(), max_active_runs=2)
    for _ in range(10):
        with engine.begin() as c:
            create_runs(c)
    assert len(runs(engine)) == 2
    with engine.begin() as c:
        c.execute(text("UPDATE dag_run SET state = 'success' WHERE id = (SELECT min(id) FROM dag_run)"))
        create_runs(c)
    assert len(runs(engine)) == 3


def plain(timetable: Timetable) -> object:
    return DAG("d", schedule=timetable).spec().schedule


def next_run(engine: Engine) -> dt.datetime | None:
    with engine.begin() as c:
        found: dt.datetime | None = c.execute(text("SELECT next_run_at FROM dag")).scalar()
        return found


def test_a_one_off_runs_once_and_never_again(engine: Engine) -> None:
    # Given a DAG that was to run a minute ago, deployed before that
    at = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
    publish(engine, schedule=plain(Once(at)))
    due(engine, at.isoformat())
    # When schedulers look again and again
    for _ in range(3):
        with engine.begin() as c:
            create_runs(c)
    # Then it ran once, and nobody has to look any more
    assert runs(engine) == [at]
    with engine.begin() as c:
        found = queries.dag(c, "d")
    assert found and found.next_run_at is None
    assert found.schedule == f"once at {at.isoformat()}"
    assert next_run(engine) == dt.datetime(9999, 1, 1, tzinfo=dt.UTC)


def test_a_run_of_a_market_stands_for_its_session(engine: Engine) -> None:
    publish(engine, schedule=plain(Market("XNYS", "close", dt.timedelta(minutes=15))))
    due(engine, "2025-11-28T18:15+00:00")
    with engine.begin() as c:
        create_runs(c)
        run = c.execute(text("SELECT logical_date, interval_start, interval_end FROM dag_run")).one()
    assert run.logical_date - run.interval_end == dt.timedelta(minutes=15)
    assert dt.timedelta(hours=3) < run.interval_end - run.interval_start < dt.timedelta(hours=7)
    assert dt.datetime.now(dt.UTC) - run.logical_date < dt.timedelta(days=7)  # the latest, not the one that was due


def test_a_timetable_that_cannot_be_asked_holds_nobody_else_up(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two DAGs that are due, and a calendar that is gone since the push
    specs = [
        DagSpec(dag_id="broken", tasks=(TaskSpec(task_id="a"),), schedule=plain(Cron("@daily") & Sessions("XXXX"))),  # type: ignore[arg-type]
        DagSpec(dag_id="good", tasks=(TaskSpec(task_id="a"),), schedule="@daily"),
    ]
    with engine.begin() as c:
        bundles.register_and_activate(c, version="v1", name="b", url="", size=0, specs=specs, who="test")
        create_runs(c)
        c.execute(text("UPDATE dag SET next_run_at = '2026-01-01T00:00Z'"))
        # When the schedulers look
        assert create_runs(c) == 1
        # Then the good one runs, and the other is not asked again at once
        assert c.execute(text("SELECT dag_id FROM dag_run")).scalars().all() == ["good"]
        assert "broken" in create_runs_module._broken
    monkeypatch.setattr(create_runs_module, "_broken", {"broken": 0.0})
    with engine.begin() as c:
        create_runs(c)
    assert create_runs_module._broken["broken"] > 0


def test_the_last_run_that_is_known_still_runs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a calendar that ends today
    monkeypatch.setattr(create_runs_module, "_broken", {})

    def ends(*_: object) -> None:
        raise TimetableError("exchange XSHG is known until today only")

    publish(engine, schedule="@daily", catchup=True, start="2026-01-01T00:00+00:00")
    due(engine, "2026-01-01T00:00+00:00")
    monkeypatch.setattr(create_runs_module.timetable, "after", ends)
    with engine.begin() as c:
        create_runs(c)
    # Then what was due ran, and the next is asked for again later
    assert len(runs(engine)) == 1
    assert next_run(engine) is None


def test_another_schedule_or_zone_starts_anew_and_the_same_goes_on(engine: Engine) -> None:
    at = "2026-01-01T00:00+00:00"
    versions = iter(range(2, 10))

    def push(**options: object) -> dt.datetime | None:
        spec = DagSpec(dag_id="d", tasks=(TaskSpec(task_id="a"),), **options)  # type: ignore[arg-type]
        with engine.begin() as c:
            c.execute(text("UPDATE dag SET next_run_at = :at"), {"at": dt.datetime.fromisoformat(at)})
            bundles.register_and_activate(
                c, version=f"v{next(versions)}", name="b", url="", size=0, specs=[spec], who="test"
            )
        return next_run(engine)

    publish(engine, schedule="@daily")
    assert push(schedule="@daily") == dt.datetime.fromisoformat(at)
    assert push(schedule="@daily", timezone="Asia/Tokyo") is None
    assert push(schedule=plain(Cron("@daily") - Dates(["2026-12-24", "2026-12-25"]))) is None
    assert push(schedule=plain(Cron("@daily") - Dates(["2026-12-24", "2026-12-26"]))) is None
    assert push(schedule=plain(Cron("@daily") - Dates(["2026-12-24", "2026-12-26"]))) == dt.datetime.fromisoformat(at)


def test_a_paused_dag_is_not_scheduled(engine: Engine) -> None:
    publish(engine, schedule="@daily")
    due(engine, "2026-01-01T00:00+00:00")
    with engine.begin() as c:
        c.execute(text("UPDATE dag SET paused = true"))
        assert create_runs(c) == 0
    assert runs(engine) == []


# --- the reaper ------------------------------------------------------------------------------------------------


def running_task(engine: Engine) -> transitions.Claim:
    publish(engine)
    info = nodes.NodeInfo("n1", "worker", "default", "r1", "boot", slots=1, queues=["default"])
    with engine.begin() as c:
        nodes.register(c, info)
        transitions.create_run(c, "d", dt.datetime.now(dt.UTC))
        (message,) = transitions.dispatch(c)
        claim = transitions.claim(c, message.task_instance, message.attempt, node_id="n1", lease_seconds=60)
    assert claim
    return claim


def reap(engine: Engine, reaper: Reaper, now: float) -> int:
    with engine.begin() as c:
        return reaper.reap(c, now)


def test_a_lease_is_over_when_it_was_seen_unchanged_for_its_whole_length(engine: Engine) -> None:
    running_task(engine)
    reaper = Reaper(60)
    assert reap(engine, reaper, 1000.0) == 0
    assert reap(engine, reaper, 1060.0 + MARGIN_SECONDS - 0.1) == 0
    assert reap(engine, reaper, 1060.0 + MARGIN_SECONDS) == 1


def test_a_lease_that_is_renewed_is_never_over(engine: Engine) -> None:
    claim = running_task(engine)
    reaper = Reaper(60)
    for now in range(1000, 2000, 50):
        assert reap(engine, reaper, float(now)) == 0
        with engine.begin() as c:
            nodes.heartbeat(c, "n1", [claim.token], lease_seconds=60)


def test_a_wrong_clock_takes_no_lease_away(engine: Engine) -> None:
    # Given a lease that by the database's clock ended an hour ago (its clock was set forward)
    running_task(engine)
    with engine.begin() as c:
        c.execute(text("UPDATE task_instance SET lease_expires_at = now() - interval '1 hour'"))
    # Then it still is given its whole length on the scheduler's own clock
    reaper = Reaper(60)
    assert reap(engine, reaper, 1000.0) == 0
    assert reap(engine, reaper, 1059.0) == 0


def test_after_the_database_was_away_every_lease_gets_its_whole_length_again(engine: Engine) -> None:
    running_task(engine)
    reaper = Reaper(60)
    reap(engine, reaper, 1000.0)
    reaper.forget()
    assert reap(engine, reaper, 1100.0) == 0
    assert reap(engine, reaper, 1100.0 + 60 + MARGIN_SECONDS) == 1
