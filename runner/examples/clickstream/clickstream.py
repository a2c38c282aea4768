"""Clickstream loading: a DAG for each customer, a task for each type of event, hour by hour from S3 into the warehouse.

The customers come from the API at `CLICKSTREAM_CUSTOMERS` (JSON as in customers.json), else from that file. The DAGs
are those there were when the bundle was pushed: push again for a new customer. Workers ask too when they load the
bundle, so where the API may be away, write its answer to customers.json and push that.
"""

import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

import httpx

from runner.authoring import DAG, Asset, dag, task
from runner.authoring.operators import StorageToSQL
from runner.authoring.sensors import S3KeySensor

LANDING = os.environ.get("CLICKSTREAM_BUCKET", "clickstream")
HOUR = "{{ interval_start.strftime('%Y-%m-%d/%H') }}"


def customers() -> list[dict[str, Any]]:
    """{"name", "events"} of each."""
    url = os.environ.get("CLICKSTREAM_CUSTOMERS")
    text = (
        httpx.get(url, timeout=10).raise_for_status().text
        if url
        else Path(__file__).with_name("customers.json").read_text()
    )
    return list(json.loads(text))


@task
def total(loads: list[dict[str, int] | None]) -> int:
    """Rows of all events that came."""
    return sum(load["rows"] for load in loads if load)


def loading(name: str, events: list[str]) -> DAG:
    """The DAG of one customer."""

    @dag(dag_id=f"clickstream_{name}", schedule="@hourly", max_active_runs=4, tags=["example", "clickstream"])
    def made() -> None:
        """Each event of the hour into its own table."""
        loads = []
        for event in events:
            url = f"s3://{LANDING}/{name}/{HOUR}/{event}.csv.gz"
            landed = S3KeySensor(
                f"await_{event}", url=url, poke_interval=dt.timedelta(seconds=10), timeout=dt.timedelta(hours=3),
                soft_fail=True,  # not every event happens every hour
            )  # fmt: skip
            loads.append(
                StorageToSQL(
                    f"load_{event}",
                    source=url,
                    connection="warehouse",
                    table=f"{name}.{event}",
                    before=f"DELETE FROM {name}.{event} WHERE hour = :hour",
                    parameters={"hour": "{{ interval_start | ts }}"},
                    retries=3,
                    pool="warehouse",
                    outlets=[Asset(f"warehouse/{name}/{event}")],
                )
            )
            landed >> loads[-1]
        total.override(trigger_rule="none_failed")(loads)

    return made()


for customer in customers():
    loading(customer["name"], customer["events"])
