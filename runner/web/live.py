"""Live updates: one reader of the event table per process, fanned out to every open page as Server-Sent Events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator

import structlog
from sqlalchemy import Connection, Engine

from runner.state import queries
from runner.state.queries import EventRow

log = structlog.get_logger("web")

_BATCH = 1000
_KEEP = 5000  # events kept in memory, for streams that come back
_PENDING = 500  # events one slow client may be behind before it is told to read everything again
_GAP_SECONDS = 60.0  # an id that has not appeared by then belongs to a transaction that was rolled back
_KEEP_ALIVE_SECONDS = 15.0


class EventReader:
    """Reads each event once, also those that commit after an event with a greater id."""

    def __init__(self) -> None:
        self.last_id = 0
        self._missing: dict[int, float] = {}  # id: until when to look for it

    def start(self, connection: Connection) -> None:
        """Begin after the newest event. What is uncommitted at this moment is still found later."""
        ids = [e.id for e in reversed(queries.last_events(connection, 200))]
        self._missing.clear()
        self.last_id = ids[0] if ids else 0
        self._advance(ids)

    def read(self, connection: Connection) -> list[EventRow]:
        """What is new, in the order of ids except for late comers, which come first."""
        found: list[EventRow] = []
        if self._missing:
            found = queries.events_among(connection, list(self._missing))
            for event in found:
                del self._missing[event.id]
            now = time.monotonic()
            self._missing = {i: until for i, until in self._missing.items() if until > now}
        new = queries.events(connection, self.last_id, _BATCH)
        self._advance([e.id for e in new])
        return found + new

    def _advance(self, ids: Iterable[int]) -> None:
        until = time.monotonic() + _GAP_SECONDS
        for i in ids:
            # A crash of the database skips some numbers; it never leaves a gap as wide as this.
            if i - self.last_id <= _BATCH:
                self._missing.update(dict.fromkeys(range(self.last_id + 1, i), until))
            self.last_id = i


def topics_of(event: EventRow) -> tuple[str, ...]:
    """Whom an event concerns: everybody, those who watch its kind, its run, or its task."""
    out = ["*", event.kind]
    if event.run_id is not None:
        out.append(f"run:{event.run_id}")
    if event.kind == "task":
        out.append(f"task:{event.subject}")
    return tuple(out)


class Subscription:
    """One open stream and what it has not been sent yet."""

    def __init__(self, topics: frozenset[str]) -> None:
        self.topics = topics
        self.pending: dict[int, EventRow] = {}
        self.overflow = False
        self.wake = asyncio.Event()

    def take(self) -> tuple[list[EventRow], bool]:
        """What is pending, and whether some of it was dropped because the client is slow."""
        taken, overflow = list(self.pending.values()), self.overflow
        self.pending, self.overflow = {}, False
        self.wake.clear()
        return taken, overflow


class Hub:
    """Fans the events out. While nobody listens it asks the database nothing."""

    def __init__(self, engine: Engine, *, poll_seconds: float = 1.0, max_streams: int = 1000) -> None:
        self.engine = engine
        self.poll_seconds = poll_seconds
        self.max_streams = max_streams
        self.version = 0  # grows with every batch: what was rendered before it is stale
        self.closed = asyncio.Event()
        self._topics: dict[str, set[Subscription]] = {}
        self._streams = 0
        self._wanted = asyncio.Event()
        self._kept: deque[EventRow] = deque(maxlen=_KEEP)
        self._reader: EventReader | None = None

    @property
    def streams(self) -> int:
        """Open streams."""
        return self._streams

    @property
    def full(self) -> bool:
        """No further stream is taken."""
        return self._streams >= self.max_streams or self.closed.is_set()

    async def run(self) -> None:
        """Poll until closed. A database that is away is asked again at the same pace."""
        while not self.closed.is_set():
            if not self._streams:
                self._reader = None
                self._kept.clear()
                self._wanted.clear()
                await _first(self._wanted, self.closed)
                continue
            try:
                if self._reader is None:
                    self._reader = await asyncio.to_thread(self._start)
                    self._reset()  # what happened between a page's rendering and now
                while len(batch := await asyncio.to_thread(self._read)) >= _BATCH:
                    self.publish(batch)
                self.publish(batch)
            except Exception as e:  # whatever it is, the next round may go well, and pages must not freeze
                log.warning("web.poll_failed", error=str(e).splitlines()[0])
            await _first(self.closed, seconds=self.poll_seconds)

    def _start(self) -> EventReader:
        reader = EventReader()
        with self.engine.connect() as connection:
            reader.start(connection)
        return reader

    def _read(self) -> list[EventRow]:
        assert self._reader is not None
        with self.engine.connect() as connection:
            return self._reader.read(connection)

    def _reset(self) -> None:
        """Tell every stream to look again."""
        self.version += 1
        for subscription in {s for group in self._topics.values() for s in group}:
            subscription.overflow = True
            subscription.wake.set()

    def publish(self, batch: list[EventRow]) -> None:
        """Hand a batch to those it concerns. Streams it does not concern cost nothing."""
        if not batch:
            return
        self.version += 1
        self._kept.extend(batch)
        woken: set[Subscription] = set()
        for event in batch:
            for topic in topics_of(event):
                for subscription in self._topics.get(topic, ()):
                    if len(subscription.pending) >= _PENDING:
                        subscription.pending.clear()
                        subscription.overflow = True
                    subscription.pending[event.id] = event
                    woken.add(subscription)
        for subscription in woken:
            subscription.wake.set()

    @contextlib.contextmanager
    def subscribe(self, topics: frozenset[str]) -> Iterator[Subscription]:
        """A stream of these topics (kinds, `run:<id>`, `task:<id>`, or `*`)."""
        subscription = Subscription(topics)
        for topic in topics:
            self._topics.setdefault(topic, set()).add(subscription)
        self._streams += 1
        self._wanted.set()
        try:
            yield subscription
        finally:
            self._streams -= 1
            for topic in topics:
                self._topics[topic].discard(subscription)
                if not self._topics[topic]:
                    del self._topics[topic]

    def since(self, event_id: int, topics: frozenset[str]) -> list[EventRow] | None:
        """What came after this event, as far as it is still in memory; None if that is not known."""
        missed: list[EventRow] = []
        for event in reversed(self._kept):
            if event.id == event_id:
                return missed[::-1]
            if topics.intersection(topics_of(event)):
                missed.append(event)
        return None

    def close(self) -> None:
        """End all streams and the polling."""
        self.closed.set()

    async def stream(
        self,
        topics: frozenset[str],
        *,
        brief: bool = False,
        every_seconds: float = 0.0,
        tick_seconds: float | None = None,
        last_event_id: int | None = None,
    ) -> AsyncIterator[str]:
        """The body of one stream.

        Full: messages `events` with a JSON array of events, and `reset` when some were lost: read it all again.
        Brief: messages `changed` with what kinds changed; the first at once, for what happened while the page was on
        its way, and one after `tick_seconds` of silence. At most one message in `every_seconds`; what comes in between
        goes out with the next one.
        """
        with self.subscribe(topics) as subscription:
            yield "retry: 1000\n\n"
            if brief:
                yield _message("changed", {"kinds": []}, None)
            elif last_event_id is not None:
                missed = self.since(last_event_id, topics)
                if missed != []:
                    yield _message("reset", {}, None) if missed is None else _events(missed, brief, False)
            ticking = brief and tick_seconds is not None
            patience = tick_seconds if ticking else _KEEP_ALIVE_SECONDS
            while not self.closed.is_set():
                await _first(subscription.wake, self.closed, seconds=patience)
                if self.closed.is_set():
                    return
                events, overflow = subscription.take()
                if not events and not overflow:
                    yield _message("changed", {"kinds": []}, None) if ticking else ": still here\n\n"
                    continue
                yield _events(events, brief, overflow)
                await _first(self.closed, seconds=every_seconds)


def _events(events: list[EventRow], brief: bool, overflow: bool) -> str:
    newest = events[-1].id if events else None
    if brief:
        return _message("changed", {"kinds": sorted({e.kind for e in events})}, newest)
    if overflow:
        return _message("reset", {}, newest)
    return _message("events", queries.to_json(events), newest)


def _message(event: str, data: object, event_id: int | None) -> str:
    lines = [] if event_id is None else [f"id: {event_id}"]
    # JSON has no raw line breaks, so one data line is enough.
    return "\n".join([*lines, f"event: {event}", f"data: {json.dumps(data, separators=(',', ':'))}", "", ""])


async def _first(*events: asyncio.Event, seconds: float | None = None) -> None:
    """Wait until one of the events is set, or for this long."""
    tasks = [asyncio.ensure_future(e.wait()) for e in events]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
