"""What the agent asks of a service, and of whoever runs services on this machine.

Two kinds: child processes of the agent (`child`, for process nodes) and units of systemd (`unit`, for real hosts).
"""

from __future__ import annotations

import time
from typing import Protocol

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_STEADY_SECONDS = 60.0  # a service that lived this long starts with the first pause again


class SupervisorError(OSError):
    """Whoever runs the services gave no answer, or refused."""


class Service(Protocol):
    """One service. It may outlive the agent and is found again. Methods raise OSError where that cannot be told."""

    def alive(self) -> bool:
        """Whether it runs, or would be started again without anybody's doing."""

    def resting(self) -> bool:
        """Whether it is down at the moment, and will be started again without anybody's doing."""

    def start(self) -> bool:
        """Start it unless it runs or the pause after its last exit is not over; True if started. Returns at once."""

    def stop(self, grace_seconds: float) -> bool:
        """Ask it to end; once it was asked so long ago, kill all that is left of it. True if it is gone.

        Returns at once: call it again until it says True.
        """


class Supervisor(Protocol):
    """Who runs the services of this machine."""

    owns: bool  # services end with the agent
    many: bool  # services of two releases may run side by side

    def running(self) -> list[str]:
        """The releases of which a service runs, also one that another agent has started."""

    def release(self) -> str:
        """The release that this machine was booted with or, of a role that runs once, the one it starts."""

    def node_id(self, release: str) -> str:
        """Which node the service of this release is."""

    def service(self, release: str) -> Service:
        """The service of this release, always the same object."""

    def installed(self, release: str) -> bool:
        """Whether this release can be started here."""

    def install(self, release: str) -> None:
        """Begin to bring it here, or go on; call it until it is installed. Raises SupervisorError with the reason if
        it cannot be."""

    def current(self) -> str:
        """The release that the agent is started from."""

    def switch(self, release: str) -> None:
        """Make this the release that the agent and every service that runs once are started from."""


class Backoff:
    """The growing pause between an exit and the next start."""

    def __init__(self) -> None:
        self._pause = _FIRST_PAUSE_SECONDS
        self._not_before = 0.0
        self._started = time.monotonic()

    def started(self) -> None:
        """It was started now."""
        self._started = time.monotonic()

    def ended(self) -> None:
        """It was seen down: the next start waits."""
        steady = time.monotonic() - self._started > _STEADY_SECONDS
        self._pause = _FIRST_PAUSE_SECONDS if steady else self._pause
        self._not_before = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)

    def over(self) -> bool:
        """Whether it may be started."""
        return time.monotonic() >= self._not_before
