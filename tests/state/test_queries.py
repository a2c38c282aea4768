from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from runner.authoring.spec import DagSpec, TaskSpec
from runner.state import bundles, nodes, queries, rollouts, transitions
from runner.state import dags as dag_switches
from runner.state.transitions import Outcome

DAY = dt.timedelta(days=1)
START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)

CHAIN = DagSpec(
    dag_id="chain",
    description="two tasks",
    schedule="@daily",
    timezone="Europe/Rome",
    tags=("one", "two"),
    tasks=(
        TaskSpec(task_id="first", retries=1, retry_delay_seconds=3600),
        TaskSpec(task_id="second", upstream=("first",)),
    ),
)
ALONE = DagSpec(dag_id="alone", tasks=(TaskSpec(task_id="only", queue="cpu"),))


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as c:
        bundles.register_and_activate(
            c, version="v1", name="b", url="file:///b", size=1, specs=[CHAIN, ALONE], who="ana"
        )
        nodes.register(c, nodes.NodeInfo("n1", "worker", "default", "r1", "boot", 4, ("default", "node.n1")))
        yield c


def create(c: Connection, dag_id: str, days: int) -> int:
    run_id = transitions.create_run(c, dag_id, START + days * DAY)
    assert run_id is not None
    return run_id


def start(c: Connection) -> list[transitions.Claim]:
    claims = [
        transitions.claim(c, m.task_instance, m.attempt, node_id="n1", lease_seconds=60)
        for m in transitions.dispatch(c)
    ]
    return [x for x in claims if x]


def finish(c: Connection, claim: transitions.Claim, result: Any = "success", error: str | None = None) -> None:
    transitions.finish(c, [Outcome(claim.task_instance, claim.token, result, error=error)])


def test_dags_come_by_id_with_their_last_runs(connection: Connection) -> None:
    late, early = create(connection, "chain", 5), create(connection, "chain", 1)

    alone, chain = queries.dags(connection)

    assert (alone.dag_id, alone.tasks, alone.recent, alone.timezone) == ("alone", 1, [], "UTC")
    assert (chain.description, chain.tags, chain.schedule) == ("two tasks", ["one", "two"], "@daily")
    assert [r.id for r in chain.recent] == [late, early]  # by logical date
    assert [r.id for r in queries.dags(connection, search="CHA", recent=1)[0].recent] == [late]
    assert [d.dag_id for d in queries.dags(connection, after="alone")] == ["chain"]
    assert [d.dag_id for d in queries.dags(connection, limit=1)] == ["alone"]
    assert queries.dags(connection, search="%") == []


def test_a_dag_that_left_its_bundle_is_listed_only_if_asked_for(connection: Connection) -> None:
    connection.execute(text("UPDATE dag SET active = false WHERE dag_id = 'alone'"))

    assert [d.dag_id for d in queries.dags(connection)] == ["chain"]
    assert len(queries.dags(connection, active_only=False)) == 2
    found = queries.dag(connection, "alone")
    assert found is not None
    assert not found.active
    assert found.spec["tasks"][0]["queue"] == "cpu"
    assert queries.dag(connection, "nix") is None


def test_pages_of_runs_join_to_the_whole_list(connection: Connection) -> None:
    chain = [create(connection, "chain", d) for d in (3, 1, 4, 0, 2)]
    alone = [create(connection, "alone", d) for d in range(3)]

    def pages(dag_id: str | None) -> list[int]:
        out: list[int] = []
        while page := queries.runs(connection, dag_id, limit=2, before_id=out[-1] if out else None):
            out += [r.id for r in page]
        return out

    assert pages(None) == sorted(chain + alone, reverse=True)
    assert pages("chain") == [chain[i] for i in (2, 0, 4, 1, 3)]  # by logical date


def test_runs_are_filtered_by_state(connection: Connection) -> None:
    create(connection, "chain", 0)
    (claim,) = start(connection)
    finish(connection, claim)
    (claim,) = start(connection)
    finish(connection, claim, "failed", "broken")
    running = create(connection, "chain", 1)

    assert [r.id for r in queries.runs(connection, state="running")] == [running]
    assert [r.id for r in queries.runs(connection, "chain", "running")] == [running]
    (failed,) = queries.runs(connection, state="failed")
    assert queries.runs(connection, "chain", "failed") == [failed]
    assert (failed.tasks, failed.unfinished, failed.ended_at is not None) == (2, 0, True)
    assert queries.runs(connection, "alone", "failed") == []
    counts = queries.counts(connection)
    assert (counts.runs_running, counts.runs_failed_24h, counts.runs_success_24h) == (1, 1, 0)


def test_a_run_shows_first_what_needs_a_person(connection: Connection) -> None:
    tasks = tuple(TaskSpec(task_id=f"t{i}") for i in range(4))
    bundles.register_and_activate(
        connection, version="w1", name="wide", url="x", size=1, specs=[DagSpec(dag_id="wide", tasks=tasks)], who="ana"
    )
    run_id = create(connection, "wide", 0)
    claims = start(connection)
    finish(connection, claims[0])
    finish(connection, claims[3], "failed", "broken")

    run = queries.run(connection, run_id)

    assert run is not None
    assert [(t.task_id, t.state) for t in run.task_instances] == [
        ("t3", "failed"),
        ("t1", "running"),
        ("t2", "running"),
        ("t0", "success"),
    ]
    assert run.counts == {"failed": 1, "running": 2, "success": 1}
    assert run.task_instances[1].node_id == "n1"
    some = queries.run(connection, run_id, states=["running"], limit=1, offset=1)
    assert some is not None
    assert [t.task_id for t in some.task_instances] == ["t2"]
    assert some.counts == run.counts
    assert queries.run(connection, 10**9) is None
    assert queries.task_states(connection, run_id)["t3"] == "failed"
    assert queries.task_of(connection, run_id, "t3") == run.task_instances[0].id
    assert queries.task_of(connection, run_id, "t9") is None


def test_a_task_tells_all_its_attempts(connection: Connection) -> None:
    create(connection, "chain", 0)
    create(connection, "chain", 1)
    mine, other = start(connection)
    finish(connection, mine, "failed", "broken")

    task = queries.task_instance(connection, mine.task_instance)

    assert task is not None
    assert (task.state, task.tries, task.max_tries, task.error) == ("up_for_retry", 1, 2, "broken")
    assert [(e.state, e.attempt, e.node_id) for e in task.events] == [
        ("queued", 1, None),
        ("running", 1, "n1"),
        ("up_for_retry", 1, "n1"),
    ]
    assert task.events[-1].detail == "will be retried: broken"
    assert all(e.subject != str(other.task_instance) for e in task.events)
    assert queries.task_instance(connection, 10**9) is None


def test_events_are_read_forward_and_backward(connection: Connection) -> None:
    create(connection, "alone", 0)
    dag_switches.set_paused(connection, "alone", True, by="ana")

    everything = queries.events(connection, 0)

    assert [e.id for e in everything] == sorted(e.id for e in everything)
    assert [e.id for e in queries.last_events(connection, 2)] == [e.id for e in everything[-1:-3:-1]]
    assert queries.last_events(connection, 9, before_id=everything[1].id) == [everything[0]]
    assert queries.events(connection, everything[-2].id) == [everything[-1]]
    assert queries.events_among(connection, [everything[0].id, 10**9]) == [everything[0]]
    assert queries.last_event_id(connection) == everything[-1].id
    assert (everything[-1].kind, everything[-1].state, everything[-1].detail) == ("dag", "paused", "by ana")
    assert not dag_switches.set_paused(connection, "nix", True, by="ana")


def test_the_fleet_tells_who_is_heard_and_what_it_runs(connection: Connection) -> None:
    for node_id, role in (("n0", "scheduler"), ("n2", "worker"), ("n3", "worker")):
        nodes.register(connection, nodes.NodeInfo(node_id, role, "default", "r1", "boot", 2, ("default",)))
    connection.execute(text("UPDATE node_heartbeat SET at = now() - interval '1 hour' WHERE node_id = 'n2'"))
    nodes.gone(connection, "n3", cause="terminated")
    create(connection, "chain", 0)
    start(connection)

    fleet = queries.fleet(connection)

    assert [(n.node_id, n.running, n.live) for n in fleet] == [("n0", 0, True), ("n1", 1, True), ("n2", 0, False)]
    assert fleet[2].heartbeat_age_seconds == pytest.approx(3600, abs=60)
    counts = queries.counts(connection)
    assert (counts.nodes, counts.nodes_live, counts.slots, counts.tasks_running) == (3, 2, 4, 1)


def test_queues_tell_what_waits_and_who_could_take_it(connection: Connection) -> None:
    create(connection, "chain", 0)
    create(connection, "alone", 0)
    (claim,) = start(connection)
    finish(connection, claim, "failed", "broken")  # its retry is due in an hour
    create(connection, "chain", 1)
    create(connection, "chain", 2)
    transitions.dispatch(connection)

    cpu, default = queries.queues(connection)

    assert (cpu.queue, cpu.ready, cpu.slots, cpu.nodes) == ("cpu", 1, 0, 0)
    assert cpu.oldest_wait_seconds is not None
    assert (default.queue, default.delayed, default.queued, default.slots) == ("default", 1, 2, 4)
    assert "node.n1" not in {q.queue for q in queries.queues(connection)}
    transitions.create_run(connection, "alone", START + 9 * DAY, queue="node.n1")
    assert "node.n1" in {q.queue for q in queries.queues(connection)}


def test_rollouts_come_with_their_steps(connection: Connection) -> None:
    for n in (1, 2):
        connection.execute(
            text(
                "INSERT INTO rollout (role, pool, release, strategy, wish, created_by)"
                " VALUES ('worker', :p, 'r2', 'replace', '{}', 'ana')"
            ),
            {"p": f"p{n}"},
        )
    connection.execute(
        text("INSERT INTO rollout_step (rollout_id, seq, action, args) VALUES (1, 2, 'b', '{}'), (1, 1, 'a', '{}')")
    )

    second, first = rollouts.recent(connection)

    assert (second.pool, second.steps) == ("p2", [])
    assert [s.action for s in first.steps] == ["a", "b"]
    assert [r.id for r in rollouts.recent(connection, before_id=2)] == [1]


def test_everything_is_ready_for_json(connection: Connection) -> None:
    run_id = create(connection, "chain", 0)
    run = queries.run(connection, run_id)
    assert run is not None

    told = json.loads(json.dumps(queries.to_json(run)))

    assert told["logical_date"] == "2026-03-01T00:00:00Z"
    assert told["task_instances"][0]["ended_at"] is None
    for value in (queries.fleet(connection), queries.queues(connection), queries.counts(connection)):
        json.dumps(queries.to_json(value))


def test_no_query_reads_the_history(engine: Engine, connection: Connection) -> None:
    """Given thousands of finished runs, then every list, page and count goes by an index."""
    connection.execute(
        text("""
        INSERT INTO dag_run (dag_id, bundle_version, logical_date, interval_start, interval_end, run_type, state,
                             unfinished, created_at, ended_at)
        SELECT CASE WHEN i % 2 = 0 THEN 'chain' ELSE 'alone' END, 'v1', d, d, d, 'scheduled', 'success', 0, d, d
        FROM generate_series(1, 8000) i, LATERAL (SELECT now() - make_interval(hours => i + 48) AS d) x""")
    )
    connection.execute(
        text("""
        INSERT INTO task_instance (run_id, dag_id, task_id, bundle_version, state, queue, priority, trigger_rule,
            leaf, upstream_total, waiting_on, max_tries, started_at, ended_at)
        SELECT id, dag_id, t, 'v1', 'success', 'default', 0, 'all_success', true, 0, 0, 1, created_at, created_at
        FROM dag_run, unnest(ARRAY['a', 'b', 'c']) t""")
    )
    connection.execute(
        text("""
        INSERT INTO event (kind, subject, state, run_id, attempt)
        SELECT 'task', id::text, 'success', run_id, 1 FROM task_instance""")
    )
    run_id = create(connection, "chain", 0)
    (claim,) = start(connection)
    connection.execute(text("ANALYZE"))

    with _plans(connection) as scanned:
        queries.dags(connection)
        queries.dag(connection, "chain")
        queries.runs(connection, limit=20)
        queries.runs(connection, before_id=5000, limit=20)
        queries.runs(connection, "chain", limit=20)
        queries.runs(connection, "chain", before_id=5000, limit=20)
        queries.runs(connection, state="running", limit=20)
        queries.run(connection, run_id)
        queries.task_instance(connection, claim.task_instance)
        queries.task_states(connection, run_id)
        queries.task_of(connection, run_id, "first")
        queries.events(connection, 23000)
        queries.events_among(connection, [1, 2, 3])
        queries.last_events(connection)
        queries.last_event_id(connection)
        queries.fleet(connection)
        queries.queues(connection)
        rollouts.recent(connection)
        queries.counts(connection)
        queries.runs_running(connection)

    assert len(scanned) >= 20
    large = {"dag_run", "task_instance", "event"}
    for statement, steps in scanned:
        tables = {step["Relation Name"] for step in steps if step["Node Type"] == "Seq Scan"}
        assert not tables & large, f"reads a whole table: {statement}"

    # and what is rare among many is found by an index of its own
    with _plans(connection) as plans:
        queries.runs(connection, state="failed", limit=20)
        queries.task_instance(connection, claim.task_instance)
    steps = [step for _, found in plans for step in found]
    assert "ix_dag_run_failed" in {step.get("Index Name") for step in steps}
    (events,) = (step for step in steps if step.get("Index Name") == "ix_event_run")
    assert "subject" in events["Index Cond"] and "run_id" in events["Index Cond"]


@contextlib.contextmanager
def _plans(connection: Connection) -> Iterator[list[tuple[str, list[dict[str, Any]]]]]:
    """Each statement run inside, with the steps of its plan."""
    seen: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        seen.append((statement, parameters))

    out: list[tuple[str, list[dict[str, Any]]]] = []
    event.listen(connection, "before_cursor_execute", note)
    try:
        yield out
    finally:
        event.remove(connection, "before_cursor_execute", note)
    for statement, parameters in seen:
        (plan,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
        out.append((statement, list(_steps(plan["Plan"]))))


def _steps(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _steps(child)
