"""Waiting for what a URL answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.authoring.errors import AuthoringError
from runner.authoring.sensors.base import DeferrableSensor, connection_name


class HttpSensor(DeferrableSensor):
    """Waits until a URL answers with a status below 400 and, where given, with `contains` or `json` in its body.

    `url` is whole, or the rest after the URL of `connection` (a name; its login and password are sent as basic
    authentication). `json`: these keys of an object must have these values, e.g. {"state": "done"}. 404, 408, 409,
    423, 425, 429 and 5xx are not yet; another 4xx is a failure at once. The value is the answer's JSON object if
    `json` is given.
    """

    template_fields = ("url", "headers", "contains", "json")

    def __init__(
        self,
        task_id: str,
        *,
        url: str = "",
        connection: str | None = None,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        contains: str | None = None,
        json: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(task_id, **options)
        if connection is None and not url.startswith(("http://", "https://", "{{")):
            raise AuthoringError(f"task {task_id!r}: url must be http(s)://…, or the rest after a connection's URL")
        self.url = url
        self.connection = None if connection is None else connection_name(task_id, connection)
        self.method = method.upper()
        self.headers = dict(headers or {})
        self.contains = contains
        self.json = None if json is None else dict(json)

    def condition(self) -> dict[str, Any]:
        """{"kind": "http", "url", "connection", "method", "headers", "contains", "json"}"""
        names = ("url", "connection", "method", "headers", "contains", "json")
        return {"kind": "http"} | {name: getattr(self, name) for name in names}
