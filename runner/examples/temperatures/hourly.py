"""On a schedule: what the temperature was in this hour of 2010."""

import datetime as dt

import source
from ledger import recorded

from runner.authoring import Context, Skip, dag, task


@task(retries=3, retry_delay=dt.timedelta(seconds=10), timeout=dt.timedelta(minutes=1))
@recorded
def look_up(context: Context) -> dict[str, str]:
    """City → degrees in the hour that the run stands for. Skips an hour that the year did not have."""
    hour = context.interval_start.strftime(f"{source.YEAR}-%m-%dT%H:00")
    found = {city: str(r.degrees) for city in source.CITIES for r in source.readings(city) if r.at == hour}
    if not found:
        raise Skip(f"no reading for {hour}")
    return found


@task(retries=3, retry_delay=dt.timedelta(seconds=10))
@recorded
def warmest(degrees: dict[str, str]) -> str:
    city = max(degrees, key=lambda name: float(degrees[name]))
    print(f"warmest: {city}, {degrees[city]} F")
    return city


@dag(schedule="@hourly", start=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), tags=["example"])
def temperature_of_the_hour() -> None:
    """Every hour: which of the two cities was warmer in this hour of 2010."""
    warmest(look_up())
