"""The context of a task that no platform runs."""

import datetime as dt

import pytest

from runner.authoring import Context

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context(
        dag_id="d",
        run_id="7",
        task_id="t",
        logical_date=NOON,
        interval_start=NOON - dt.timedelta(days=1),
        params={"who": "ann"},
        storage_url=f"file://{tmp_path_factory.mktemp('store')}",
    )
