"""Waiting for an asset to be updated."""

from __future__ import annotations

import datetime as dt
from typing import Any

from runner.authoring.assets import Asset
from runner.authoring.sensors.base import DeferrableSensor


class AssetSensor(DeferrableSensor):
    """Waits until an asset was updated at or after `since` (text, ISO 8601), unless given the start of the interval.

    The value is the event: {"asset", "at", "dag_id", "run_id", "task_id", "extra"}.
    """

    template_fields = ("since",)

    def __init__(
        self,
        task_id: str,
        *,
        asset: Asset | str,
        since: str = "{{ interval_start | ts }}",
        poke_interval: dt.timedelta = dt.timedelta(seconds=2),
        **options: Any,
    ) -> None:
        super().__init__(task_id, poke_interval=poke_interval, **options)
        self.asset = str(Asset(asset) if isinstance(asset, str) else asset)
        self.since = since

    def condition(self) -> dict[str, Any]:
        """{"kind": "asset", "asset", "since"}"""
        return {"kind": "asset", "asset": self.asset, "since": self.since}
