"""What the cloud says of this machine: its lifecycle, spot and rebalance notices, maintenance; and the answers."""

from __future__ import annotations

import datetime as dt
import time

import structlog

from runner.agent.lifecycle import Hook, Lifecycle, Result
from runner.agent.metadata import Event, Metadata
from runner.settings import Settings

log = structlog.get_logger("agent")

POLL_SECONDS = 1.0
SPOT_MARGIN_SECONDS = 20.0  # what still runs this long before a spot interruption is handed on
# A maintenance event is known days before; the machine is replaced once it has to be: a drain and a reserve before.
MAINTENANCE_MARGIN_SECONDS = 900.0


class CloudWatch:
    """Looks once a second. Outside of a cloud nothing is ever seen. What was seen is not taken back, except that a
    maintenance event may be cancelled before its time."""

    def __init__(self, settings: Settings) -> None:
        in_cloud = bool(settings.instance_id)
        self.metadata = Metadata(settings.imds_url) if in_cloud else None
        self.lifecycle = Lifecycle(settings.instance_id, settings.region) if in_cloud else None
        self.terminating = False
        self.completed = False
        self._drain_seconds = float(settings.drain_seconds)
        self._heed_rebalance = settings.rebalance == "replace"
        self._launching: bool | None = None if in_cloud else False  # None: the cloud has not said yet
        self._launching_since = time.monotonic()
        self._spot_end: dt.datetime | None = None
        self._rebalance = False
        self._event: Event | None = None
        self._next_look = 0.0
        self._silent = False

    @property
    def launching(self) -> bool:
        """Whether the launch hook is open."""
        return bool(self._launching)

    @property
    def boot_age(self) -> float:
        """Seconds since it was first seen open."""
        return time.monotonic() - self._launching_since

    @property
    def spot_left(self) -> float | None:
        """Seconds that tasks have until a spot interruption, None without a notice."""
        if self._spot_end is None:
            return None
        return (self._spot_end - dt.datetime.now(dt.UTC)).total_seconds() - SPOT_MARGIN_SECONDS

    @property
    def leaving(self) -> str | None:
        """Why this machine has to go although its group has not said so; None: it may stay."""
        if self._spot_end is not None:
            return "spot interruption"
        if self._event is not None:
            return f"maintenance: {self._event.code} from {self._event.not_before:%Y-%m-%d %H:%M} UTC"
        return "rebalance recommendation" if self._rebalance else None

    @property
    def then(self) -> str:
        """What becomes of the machine once it has drained for that: a spot instance goes by itself."""
        return "" if self._spot_end is not None else "replace"

    def look(self) -> None:
        """Ask what there is to know, and keep the hooks open."""
        if self.metadata is None or self.lifecycle is None:
            return
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + POLL_SECONDS
            try:
                self._ask(self.metadata)
                self._silent = False
            except OSError as e:
                if not self._silent:
                    log.warning("the metadata service does not answer", error=str(e))
                self._silent = True
        if self._launching is not False and not self.terminating:
            state = self.lifecycle.state()
            if state is not None:
                self._launching = state.startswith("Pending")
        if self.terminating:
            self._launching = False
            if not self.completed:
                self.lifecycle.beat("terminate")
        elif self._launching:
            self.lifecycle.beat("launch")

    def complete(self, hook: Hook, result: Result) -> bool:
        """Answer a hook; False: ask again."""
        if self.lifecycle is None or not self.lifecycle.complete(hook, result):
            return False
        if hook == "terminate":
            self.completed = True
        elif result == "CONTINUE":
            self._launching = False
        return True

    def terminate(self, *, decrement: bool) -> None:
        """End this machine through its group, with its place in it or for another to come. Safe to ask again."""
        if self.lifecycle is not None and not self.terminating:
            self.lifecycle.terminate(decrement=decrement)

    def _ask(self, metadata: Metadata) -> None:
        before = self.leaving
        self.terminating = self.terminating or metadata.terminating()
        self._spot_end = metadata.spot_end() or self._spot_end
        self._rebalance = self._rebalance or (self._heed_rebalance and metadata.rebalance())
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self._drain_seconds + MAINTENANCE_MARGIN_SECONDS)
        self._event = next((e for e in metadata.events() if e.not_before <= soon), None)
        if self.leaving != before:
            log.warning("this machine has to go" if self.leaving else "this machine may stay", reason=self.leaving)
