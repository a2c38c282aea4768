"""A year of hourly temperatures: split into a file per city and day, loaded by a task per file, checked by a sum."""

import csv
import datetime as dt
import io
import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import source
import warehouse
from ledger import recorded

from runner.authoring import Context, dag, task
from runner.storage import Storage

DAYS = [dt.date(source.YEAR, 1, 1) + dt.timedelta(days=n) for n in range(365)]
CITIES = ("seattle", "sf")


def key_of(run_id: str, city: str, day: str) -> str:
    """Where the file of a city and a day is kept."""
    return f"files/temperatures/{run_id}/{city}/{day}.csv"


@task(retries=2, retry_delay=dt.timedelta(seconds=5), timeout=dt.timedelta(minutes=5))
@recorded
def prepare() -> None:
    warehouse.prepare()


@task(retries=2, retry_delay=dt.timedelta(seconds=5), timeout=dt.timedelta(minutes=10))
@recorded
def split(city: str, context: Context) -> dict[str, Any]:
    """Write one CSV file a day; returns how many files, how many rows and their sum."""
    storage = Storage.open(context.storage_url)
    rows, total = 0, Decimal(0)
    files: dict[str, bytes] = {}
    for day, hours in itertools.groupby(source.readings(city), key=lambda r: r.at[:10]):
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["at", "degrees"])
        for reading in hours:
            writer.writerow(reading)
            rows += 1
            total += reading.degrees
        files[key_of(context.run_id, city, day)] = text.getvalue().encode()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(storage.put, files.keys(), files.values()))
    print(f"{city}: {rows} rows in {len(files)} files")
    return {"city": city, "files": len(files), "rows": rows, "sum": str(total)}


@task(retries=3, retry_delay=dt.timedelta(seconds=2), timeout=dt.timedelta(minutes=5))
@recorded
def load(city: str, day: str, context: Context) -> int:
    """Load one file; returns the number of rows. Takes at least `task_seconds` (param or environment)."""
    began = time.monotonic()
    text = Storage.open(context.storage_url).get(key_of(context.run_id, city, day)).decode()
    rows = [(row["at"], Decimal(row["degrees"])) for row in csv.DictReader(io.StringIO(text))]
    count = warehouse.replace_day(context.run_id, city, day, rows)
    seconds = float(context.params.get("task_seconds", os.environ.get("SLUICE_EXAMPLE_TASK_SECONDS", "0")))
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    print(f"{city} {day}: {count} rows")
    return count


@task(retries=2, retry_delay=dt.timedelta(seconds=5), timeout=dt.timedelta(minutes=5))
@recorded
def check(splits: list[dict[str, Any]], context: Context) -> dict[str, Any]:
    """Compare what is in the warehouse with the source itself, exactly. Raises ValueError if anything differs."""
    for part in splits:
        city = part["city"]
        degrees = [reading.degrees for reading in source.readings(city)]
        wanted = (len(degrees), sum(degrees, Decimal(0)))
        if wanted != (part["rows"], Decimal(part["sum"])):
            raise ValueError(f"{city}: split wrote {part['rows']} rows, sum {part['sum']}; the source has {wanted}")
        loaded = warehouse.totals(context.run_id, city)
        if loaded != wanted:
            raise ValueError(
                f"{city}: the warehouse has {loaded[0]} rows with sum {loaded[1]}, "
                f"the source {wanted[0]} with sum {wanted[1]}"
            )
        print(f"{city}: {loaded[0]} rows, sum {loaded[1]}: as in the source")
    return {part["city"]: {"rows": part["rows"], "sum": part["sum"]} for part in splits}


@dag(tags=["example"])
def temperatures() -> None:
    """Hourly temperatures of two cities, one file and one load per city and day."""
    ready = prepare()
    splits, loads = [], []
    for city in CITIES:
        files = split.override(task_id=f"split_{city}", queue="cpu")(city)
        ready >> files
        splits.append(files)
        for day in DAYS:
            queue = "cpu" if city == "sf" and day.month <= 4 else "default"
            one = load.override(task_id=f"load_{city}_{day}", queue=queue)(city, day.isoformat())
            files >> one
            loads.append(one)
    loads >> check(splits)
