"""Waiting for an object in S3."""

from __future__ import annotations

import re
from typing import Any

from runner.authoring.errors import AuthoringError
from runner.authoring.sensors.base import DeferrableSensor


class S3KeySensor(DeferrableSensor):
    """Waits until an object is there: `s3://bucket/in/{{ logical_date | ds }}/sales.csv`.

    In the key `*`, `?` and `[…]` stand for other characters as in shells, `*` also for `/`; the first match in the
    order of keys counts. The value is the URL that was found. Keys of one folder are looked for together, with one
    request for all sensors that wait there.
    """

    template_fields = ("url",)

    def __init__(self, task_id: str, *, url: str, **options: Any) -> None:
        super().__init__(task_id, **options)
        if not isinstance(url, str) or not re.fullmatch(r"s3://[^/]+/.+", url, re.S):
            raise AuthoringError(f"task {task_id!r}: url must be s3://bucket/key, not {url!r}")
        self.url = url

    def condition(self) -> dict[str, Any]:
        """{"kind": "s3", "url"}"""
        return {"kind": "s3", "url": self.url}
