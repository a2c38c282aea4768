"""What Prometheus is told, read from a real database and parsed as Prometheus parses it."""

from __future__ import annotations

import datetime as dt
import re

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text

from runner.authoring.spec import DagSpec, TaskSpec
from runner.state import bundles, nodes, queries, transitions
from runner.state.db import connect
from runner.telemetry import metrics

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
WIDE = DagSpec(dag_id="wide", tasks=tuple(TaskSpec(task_id=f"t{i}") for i in range(6)))


def scrape(engine: Engine) -> dict[str, Metric]:
    body, content_type = metrics.render(metrics.registry(engine, release="r1", env="test"), "")
    assert content_type.startswith("text/plain")
    return {m.name: m for m in text_string_to_metric_families(body.decode())}


def value(found: dict[str, Metric], name: str, **labels: str) -> float:
    (sample,) = (s for m in found.values() for s in m.samples if s.name == name and labels.items() <= s.labels.items())
    return float(sample.value)


@pytest.fixture
def busy(engine: Engine) -> Engine:
    """A worker with two slots: of six tasks one runs, one was rung for, and one was interrupted before."""
    with engine.begin() as c:
        bundles.register_and_activate(c, version="v1", name="b", url="x", size=1, specs=[WIDE], who="ana")
        nodes.register(c, nodes.NodeInfo("w1", "worker", "default", "r1", "boot", 2, ("default",)))
        nodes.register(c, nodes.NodeInfo("s1", "scheduler", "scheduler", "r1", "boot"))
        assert transitions.create_run(c, "wide", NOON)
        first = transitions.dispatch(c)[0]
        assert transitions.claim(c, first.task_instance, first.attempt, node_id="w1", lease_seconds=60)
        assert transitions.interrupt_node(c, "w1", "test") == 1
        c.execute(text("UPDATE task_instance SET priority = 1 WHERE interruptions = 1"))
        transitions.dispatch(c)
        queued = c.execute(
            text("SELECT id, attempt FROM task_instance WHERE state = 'queued' ORDER BY id LIMIT 1")
        ).one()
        transitions.claim(c, *queued, node_id="w1", lease_seconds=60)
    return engine


def test_queues_nodes_and_runs_are_told(busy: Engine) -> None:
    found = scrape(busy)

    states = {s.labels["state"]: s.value for s in found["sluice_queue_tasks"].samples}
    assert states == {"ready": 4, "delayed": 0, "queued": 1, "running": 1}
    assert value(found, "sluice_queue_slots", queue="default") == 2
    assert value(found, "sluice_queue_nodes", queue="default") == 1
    assert 0 <= value(found, "sluice_queue_oldest_wait_seconds", queue="default") < 60
    assert value(found, "sluice_queue_interruptions", queue="default") == 1
    assert value(found, "sluice_nodes", role="worker", pool="default", state="ready") == 1
    assert value(found, "sluice_nodes", role="scheduler") == 1
    assert 0 <= value(found, "sluice_node_heartbeat_age_seconds", node="w1") < 60
    assert value(found, "sluice_node_running_tasks", node="w1", pool="default") == 1
    assert value(found, "sluice_runs", state="running") == 1
    with busy.connect() as c:
        assert value(found, "sluice_events_total") == queries.last_event_id(c)
    assert value(found, "sluice_database_up") == 1
    assert found["sluice_build_info"].samples[0].labels == {"release": "r1", "env": "test"}


def test_what_is_over_and_who_is_gone_is_not_told(busy: Engine) -> None:
    with busy.begin() as c:
        c.execute(text("UPDATE task_instance SET state = 'success', lease_token = NULL"))
        c.execute(text("UPDATE dag_run SET state = 'success'"))
        nodes.gone(c, "w1", cause="terminated")

    found = scrape(busy)

    assert value(found, "sluice_runs", state="running") == 0
    assert not found["sluice_queue_tasks"].samples
    assert [s.labels["node"] for s in found["sluice_node_heartbeat_age_seconds"].samples] == ["s1"]


def test_names_follow_the_conventions(busy: Engine) -> None:
    for family in scrape(busy).values():
        assert re.fullmatch(r"(sluice|process|python)_[a-z_]+", family.name), family.name
        assert family.documentation and family.type in ("gauge", "counter", "info"), family
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample
            assert sample.name.endswith("_info") == (sample.name in ("sluice_build_info", "python_info")), sample
        # base units only, and the unit at the end
        assert not re.search(r"_(ms|millis\w*|minutes|hours|kb|mb|percent)(_|$)", family.name), family.name
        assert not re.search(r"_(seconds|bytes)_(?!total$)", family.name), family.name


def test_a_database_that_is_away_is_a_number_and_not_an_error() -> None:
    engine = connect("postgresql://nobody@127.0.0.1:1/nothing")
    found = scrape(engine)
    assert value(found, "sluice_database_up") == 0
    assert "sluice_queue_tasks" not in found
    assert "process_resident_memory_bytes" in found
    engine.dispose()
