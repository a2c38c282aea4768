"""An HTTP request as a task."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from runner.authoring.context import Context
from runner.authoring.lookup import Connection, resolve
from runner.authoring.operators.base import Operator
from runner.authoring.operators.files import find
from runner.authoring.operators.stopping import stoppable

if TYPE_CHECKING:
    import httpx


class HttpError(RuntimeError):
    """A request failed, or its answer is not the one that was wanted."""


class HttpOperator(Operator):
    """Sends one request and returns the answer's JSON, its text, or nothing.

    `url` is whole, or the rest after the URL of `connection` (a name, a URL or a Connection; its login and password
    are sent as basic authentication). A status of 400 or more is a failure; so is an answer for which `check` (called
    with the httpx.Response) returns False. With `save_to` (a key of `context.storage`, or the URL of an object) the
    body goes there as it comes, in bounded memory, and the value is {"url", "bytes"}; a body that breaks off leaves
    nothing. `timeout_seconds` is the longest silence; the whole is bounded by the task's `timeout`. Raises HttpError.
    """

    template_fields = ("url", "params", "headers", "json", "data", "save_to")

    def __init__(
        self,
        task_id: str,
        *,
        url: str = "",
        connection: str | Connection | None = None,
        method: str = "GET",
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        data: str | Mapping[str, Any] | None = None,
        check: Callable[[httpx.Response], Any] | None = None,
        returns: Literal["json", "text", "none"] = "json",
        save_to: str | None = None,
        timeout_seconds: float = 30.0,
        **options: Any,
    ) -> None:
        super().__init__(task_id, **options)
        self.url = url
        self.connection = connection
        self.method = method
        self.params = params
        self.headers = headers
        self.json = json
        self.data = data
        self.check = check
        self.returns = returns
        self.save_to = save_to
        self.timeout_seconds = timeout_seconds

    def execute(self, context: Context) -> Any:
        """Send the request and judge the answer."""
        import httpx

        url, auth = self._where()
        shown = re.sub(r"//[^/@]*@", "//", url.partition("?")[0])  # without what may be secret
        body = {"content": self.data} if isinstance(self.data, str) else {"data": self.data}
        try:
            with (
                stoppable(),
                httpx.Client(timeout=self.timeout_seconds, follow_redirects=True, auth=auth) as client,
                client.stream(
                    self.method, url, params=self.params, headers=self.headers, json=self.json, **body
                ) as response,
            ):
                print(f"{self.method} {shown}: {response.status_code} {response.reason_phrase}")
                if response.status_code >= 400 or self.save_to is None:
                    response.read()
                self._judge(response, shown)
                return self._save(response, context) if self.save_to is not None else self._value(response, shown)
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise HttpError(f"{self.method} {shown}: {str(e) or type(e).__name__}") from e

    def _where(self) -> tuple[str, tuple[str, str] | None]:
        if self.connection is None:
            return self.url, None
        found = resolve(self.connection)
        auth = (found.login, found.password) if found.login else None
        base = Connection(type=found.type, host=found.host, port=found.port, schema=found.schema).url()
        if "://" in self.url:
            raise HttpError(f"url {self.url!r} must be a path after the URL of connection {found.name!r}")
        return f"{base.rstrip('/')}/{self.url.lstrip('/')}" if self.url else base, auth

    def _judge(self, response: httpx.Response, shown: str) -> None:
        if response.status_code >= 400:
            said = " ".join(response.text.split())[:200]
            raise HttpError(f"{self.method} {shown}: {response.status_code} {response.reason_phrase}: {said}")
        if self.check is not None and self.check(response) is False:
            name = getattr(self.check, "__name__", "check")
            raise HttpError(f"{self.method} {shown}: the answer {response.status_code} did not pass {name}")

    def _value(self, response: httpx.Response, shown: str) -> Any:
        if self.returns == "text":
            return response.text
        if self.returns == "none" or not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            said = " ".join(response.text.split())[:200]
            raise HttpError(f"{self.method} {shown}: the answer is no JSON (returns='text' takes it): {said}") from None

    def _save(self, response: httpx.Response, context: Context) -> dict[str, Any]:
        assert self.save_to is not None
        storage, key = find(self.save_to, context)
        storage.put(key, response.iter_bytes())
        return {"url": storage.url_of(key), "bytes": storage.head(key).size}
