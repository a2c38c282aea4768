"""A message to people, on any service that Apprise knows."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runner.authoring.context import Context
from runner.authoring.lookup import resolve
from runner.authoring.operators.base import Operator
from runner.authoring.operators.files import find, listed


class NotifyError(RuntimeError):
    """A message could not be sent."""


class NotifyOperator(Operator):
    """Sends a message to one or several services; a failure of one is a failure, after all were tried.

    `to` are names of connections or Apprise URLs (`slack://…`, `msteams://…`, `json://host/path`, …).
    `attachments` are keys of `context.storage` or URLs of objects. Raises NotifyError.
    """

    template_fields = ("title", "body", "attachments")

    def __init__(
        self,
        task_id: str,
        *,
        to: str | Sequence[str],
        body: str,
        title: str = "",
        attachments: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(task_id, **options)
        self.to = to
        self.body = body
        self.title = title
        self.attachments = attachments

    def execute(self, context: Context) -> None:
        """Send it to all of them."""
        problems = []
        with _on_disk(self.attachments, context) as files:
            for number, where in enumerate(listed(self.to), 1):
                name = f"receiver {number}" if "://" in where else where  # a URL may hold a token
                url = where if "://" in where else resolve(where).url()
                problem = send(url, self.title, self.body, files)
                print(f"{name}: {problem or 'sent'}")
                problems += [f"{name}: {problem}"] if problem else []
        if problems:
            raise NotifyError("; ".join(problems))


def send(url: str, title: str, body: str, files: list[str]) -> str:
    """Why it could not be sent, empty if it was."""
    import apprise

    service = apprise.Apprise()
    with apprise.LogCapture(level=apprise.logging.WARNING, fmt="%(message)s") as said:  # type: ignore[no-untyped-call]
        if not service.add(url):
            return "this is no Apprise URL"
        if service.notify(title=title, body=body, attach=files or None):
            return ""
        return " ".join(said.getvalue().split()) or "the service did not take it"


@contextlib.contextmanager
def _on_disk(attachments: Sequence[str], context: Context) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory() as directory:
        paths = []
        for number, where in enumerate(attachments):
            storage, key = find(where, context)
            path = Path(directory, str(number), key.rpartition("/")[2])
            path.parent.mkdir()
            with path.open("wb") as file:
                for piece in storage.stream(key):
                    file.write(piece)
            paths.append(str(path))
        yield paths
