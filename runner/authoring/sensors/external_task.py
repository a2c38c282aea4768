"""Waiting for another DAG's run, or for a task of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from runner.authoring.sensors.base import DeferrableSensor
from runner.authoring.task import check_id


class ExternalTaskSensor(DeferrableSensor):
    """Waits until the run of `external_dag_id` for a logical date, or a task of that run, has succeeded.

    The logical date is that of this run unless `logical_date` (text, ISO 8601) says otherwise, plus `offset`. With
    `wait_for` other final states will do. One that has ended in none of them fails the sensor at once. A run that does
    not exist yet is waited for.
    """

    template_fields = ("logical_date",)

    def __init__(
        self,
        task_id: str,
        *,
        external_dag_id: str,
        external_task_id: str | None = None,
        logical_date: str = "{{ logical_date | ts }}",
        offset: dt.timedelta = dt.timedelta(0),
        wait_for: Sequence[str] = ("success",),
        poke_interval: dt.timedelta = dt.timedelta(seconds=2),
        **options: Any,
    ) -> None:
        super().__init__(task_id, poke_interval=poke_interval, **options)
        check_id("external_dag_id", external_dag_id)
        self.external_dag_id = external_dag_id
        self.external_task_id = external_task_id
        self.logical_date = logical_date
        self.offset = offset
        self.wait_for = [wait_for] if isinstance(wait_for, str) else list(wait_for)

    def condition(self) -> dict[str, Any]:
        """{"kind": "task", "dag_id", "task_id", "logical_date", "offset_seconds", "wait_for"}"""
        return {
            "kind": "task",
            "dag_id": self.external_dag_id,
            "task_id": self.external_task_id,
            "logical_date": self.logical_date,
            "offset_seconds": self.offset.total_seconds(),
            "wait_for": self.wait_for,
        }
