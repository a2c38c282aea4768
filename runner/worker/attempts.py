"""What is running on this worker, and what it is just taking."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from runner.state.transitions import Claim
from runner.worker.children import Child


@dataclass
class Attempt:
    """An attempt this worker holds a lease for. `lease_until` is on the monotonic clock."""

    claim: Claim
    lease_until: float
    child: Child | None = None
    finishing: bool = False  # its task has ended, the outcome is on its way to the database
    abandoned: str | None = None  # why its outcome does not count any more
    ending: bool = False  # a person or a deadline wants it ended

    def abandon(self, why: str) -> None:
        """Stop it at once: the lease is lost, another attempt may start."""
        self.abandoned = why
        if self.child:
            self.child.kill()

    def end(self) -> None:
        """Ask its task to stop, and stop it soon after. What it becomes, the database knows."""
        if not self.ending:
            self.ending = True
            if self.child:
                self.child.stop()


class Attempts:
    """The attempts under way, by fencing token."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_token: dict[uuid.UUID, Attempt] = {}
        self._claiming: dict[int, float] = {}  # thread → since when

    def add(self, attempt: Attempt) -> None:
        with self._lock:
            self._by_token[attempt.claim.token] = attempt

    def remove(self, attempt: Attempt) -> None:
        with self._lock:
            self._by_token.pop(attempt.claim.token, None)

    def all(self) -> list[Attempt]:
        with self._lock:
            return list(self._by_token.values())

    def __contains__(self, token: uuid.UUID) -> bool:
        return token in self._by_token

    def __len__(self) -> int:
        return len(self._by_token)

    @contextlib.contextmanager
    def claiming(self) -> Iterator[float]:
        """While attempts are being claimed: they may be in the database and not here. Yields when it began."""
        me, began = threading.get_ident(), time.monotonic()
        with self._lock:
            self._claiming[me] = began
        try:
            yield began
        finally:
            with self._lock:
                del self._claiming[me]

    def claiming_since(self) -> float:
        """When the oldest claim that is under way began; now if there is none."""
        with self._lock:
            return min(self._claiming.values(), default=time.monotonic())
