"""The source: hourly temperatures of 2010 in Seattle and San Francisco, as the package vega_datasets ships them."""

import csv
import importlib.util
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

CITIES = {"seattle": "seattle-temps.csv", "sf": "sf-temps.csv"}
YEAR = 2010


class Reading(NamedTuple):
    """One hour: local time as `2010-01-31T13:00`, degrees Fahrenheit."""

    at: str
    degrees: Decimal


def readings(city: str) -> Iterator[Reading]:
    """Every reading of a city, in the order of the file. Raises RuntimeError if the data set is not installed."""
    # Not imported: the package would pull in pandas for what is a plain file.
    package = importlib.util.find_spec("vega_datasets")
    if package is None or package.origin is None:
        raise RuntimeError("the temperatures come with the Python package vega-datasets, which is not installed here")
    with (Path(package.origin).parent / "_data" / CITIES[city]).open(newline="") as file:
        for row in csv.DictReader(file):  # the two files differ in the order of columns and in the seconds
            yield Reading(row["date"][:16].replace("/", "-").replace(" ", "T"), Decimal(row["temp"]))
