"""containers: with processes in place of containers (tests/e2e/containers has it with Podman)."""

import datetime as dt
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from tests.examples.standin import Docker

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
ROWS = {"orders": 90, "customers": 135, "shipments": 135}

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def docker(web: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Docker]:
    with Docker() as docker:
        monkeypatch.setenv("DOCKER_HOST", docker.url)
        monkeypatch.setenv("SLUICE_VAR_PUSHGATEWAY", web.host)
        yield docker
    gc.collect()


def test_each_extract_is_a_container_and_its_metrics_are_pushed(docker: Docker, web: Any, example: Any) -> None:
    found = example("containers")["containers"].test(NOON)
    assert found["push_metrics"] == ROWS
    # Each container had its context and its limits, and is gone
    asked = [box["asked"] for box in docker.made.values()]
    assert {a["HostConfig"]["Memory"] for a in asked} == {64 * 2**20}
    assert all("SLUICE_DAG_ID=containers" in a["Env"] and "DAY=2026-03-01" in a["Env"] for a in asked)
    assert sorted(docker.removed) == sorted(docker.made) and len(docker.made) == 3
    # And the Pushgateway got one push, stamped
    [(path, body)] = web.got
    assert path == "/metrics/job/containers"
    assert 'etl_rows{day="2026-03-01",source="orders"} 90.0' in body


def test_from_the_shell(docker: Docker, dag_test: Any) -> None:
    assert dag_test("containers", "containers", NOON)["push_metrics"]["value"] == ROWS


def test_retries_wait_longer_each_time(example: Any) -> None:
    task = next(t for t in example("containers")["containers"].spec().tasks if t.task_id == "extract_orders")
    assert (task.retries, task.retry_delay_seconds, task.retry_backoff) == (4, 10, 2)
