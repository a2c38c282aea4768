"""The example `containers`, with containers."""

from __future__ import annotations

import datetime as dt
import gc
from typing import Any

import pytest

from runner.bundle import load
from runner.bundle.load import _forget
from tests.examples.conftest import EXAMPLES, web

__all__ = ["web"]

pytestmark = [
    pytest.mark.podman,
    # the Docker client leaves sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_the_example_runs_in_containers(docker_url: str, image: str, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_url)
    monkeypatch.setenv("SLUICE_VAR_IMAGE", image)
    monkeypatch.setenv("SLUICE_VAR_PUSHGATEWAY", web.host)
    try:
        found = load(EXAMPLES / "containers")["containers"].test(dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC))
    finally:
        _forget()
    assert found["push_metrics"] == {"orders": 90, "customers": 135, "shipments": 135}
    [(path, body)] = web.got
    assert path == "/metrics/job/containers" and 'etl_rows{day="2026-03-01",source="orders"} 90.0' in body
    gc.collect()
