"""Waiting for a file."""

from __future__ import annotations

from typing import Any

from runner.authoring.errors import AuthoringError
from runner.authoring.sensors.base import DeferrableSensor


class FileSensor(DeferrableSensor):
    """Waits until a file is there, as the schedulers see it: on a share that is mounted on them and on the workers.

    `path` is absolute; `*`, `?`, `[…]` and `**` as in shells. The value is the path that was found, the first in
    order.
    """

    template_fields = ("path",)

    def __init__(self, task_id: str, *, path: str, **options: Any) -> None:
        super().__init__(task_id, **options)
        self.path = str(path).removeprefix("file://")
        if not self.path.startswith(("/", "{{")):
            raise AuthoringError(f"task {task_id!r}: path must be absolute, not {path!r}")

    def condition(self) -> dict[str, Any]:
        """{"kind": "file", "path"}"""
        return {"kind": "file", "path": self.path}
