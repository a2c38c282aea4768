"""Each extract in a container of its own, and its metrics in a Pushgateway, stamped with the run they belong to.

A container sees `SLUICE_DAG_ID`, `SLUICE_LOGICAL_DATE`, `SLUICE_TRY_NUMBER`, … and what `env` adds, nothing else of the
node: it needs no library of ours, and no way to the Pushgateway. `pushgateway` and `image` are variables of the
environment (`runner objects apply`), so each environment has its own.
"""

import datetime as dt
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, push_to_gateway

from runner.authoring import Context, dag, task, variable
from runner.authoring.operators import ContainerOperator

SOURCES = ("orders", "customers", "shipments")

# A shell is all the image needs. The last line is the task's value.
EXTRACT = """
rows=0
for shard in 1 2 3 4 5; do rows=$((rows + shard * ${#SOURCE})); done
echo "$SLUICE_DAG_ID/$SLUICE_TASK_ID, try $SLUICE_TRY_NUMBER: $SOURCE of $DAY"
echo $rows
"""


@task(retries=5, retry_delay=dt.timedelta(seconds=5), retry_backoff=2)
def push_metrics(rows: dict[str, str], context: Context) -> dict[str, Any]:
    """One push for the whole run: a gauge for each source, labelled with the DAG and the day they stand for."""
    registry = CollectorRegistry()
    gauge = Gauge("etl_rows", "Rows that were extracted.", ["source", "day"], registry=registry)
    for source, count in rows.items():
        gauge.labels(source, f"{context.interval_start:%Y-%m-%d}").set(int(count))
    Gauge("etl_attempt", "Which attempt pushed.", registry=registry).set(context.attempt)
    push_to_gateway(variable("pushgateway"), job=context.dag_id, registry=registry, timeout=10)
    return {source: int(count) for source, count in rows.items()}


@dag(schedule="@daily", tags=["example"])
def containers() -> None:
    """Three extracts side by side, each with limits of its own, tried again 10 s, 20 s, 40 s, … apart."""
    rows = {
        source: ContainerOperator(
            f"extract_{source}",
            image='{{ variable("image", default="docker.io/library/busybox:1.37") }}',
            command=["sh", "-c", EXTRACT],
            env={"SOURCE": source, "DAY": "{{ interval_start | ds }}"},
            cpus=0.5,
            memory="64m",
            return_last_line=True,
            retries=4,
            retry_delay=dt.timedelta(seconds=10),
            retry_backoff=2,
            retry_jitter=0.2,
            timeout=dt.timedelta(minutes=10),
        )
        for source in SOURCES
    }
    push_metrics(rows)
