"""Work beside the main thread of a command."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Work in a thread of this process; wait() gives its result or raises its error."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._result: Future[T] = Future()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended, one way or the other."""
        return self._result.done()

    def wait(self, seconds: float | None = None) -> T:
        """Its result. Raises its error, or TimeoutError."""
        return self._result.result(seconds)

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._result.set_result(work())
        except BaseException as e:
            self._result.set_exception(e)
