from __future__ import annotations

import datetime as dt
import threading

from sqlalchemy import Engine, text

from runner.authoring import DagSpec, TaskSpec
from runner.scheduler.create_runs import create_runs
from runner.scheduler.reap import MARGIN_SECONDS, Reaper
from runner.state import bundles, nodes, transitions


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
