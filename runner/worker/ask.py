"""A task asks its worker for connections and variables: the task's side.

child → worker: {"ask": {"id": n, "kind": …, "name": …}}
worker → child: {"answer": {"id": n, "found": {…} or null}}, or with "error" instead
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Mapping
from typing import Any


class Asker:
    """Sends to the worker, one message at a time, and waits for what it answers."""

    def __init__(self, worker: socket.socket) -> None:
        self._worker = worker
        self._pid = os.getpid()
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._asked = 0
        self._answers: dict[int, dict[str, Any]] = {}

    def send(self, message: dict[str, Any]) -> None:
        """Send one message, from whichever thread."""
        data = json.dumps(message).encode() + b"\n"
        with self._sending:
            self._worker.sendall(data)

    def answered(self, answer: dict[str, Any]) -> None:
        """The worker's answer has arrived."""
        with self._changed:
            self._answers[answer["id"]] = answer
            self._changed.notify_all()

    def ask(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """The provider of `runner.authoring.lookup`. Raises LookupError where a secret is not to be had."""
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"{kind} {name!r} was asked for in a process that the task forked; ask in the task and hand it on"
            )
        with self._changed:
            self._asked += 1
            number = self._asked
        self.send({"ask": {"id": number, "kind": kind, "name": name}})
        with self._changed:
            self._changed.wait_for(lambda: number in self._answers)
            answer = self._answers.pop(number)
        if "error" in answer:
            raise LookupError(f"{kind} {name!r}: {answer['error']}")
        found: Mapping[str, Any] | None = answer["found"]
        return found
