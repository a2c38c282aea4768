"""The loop: which sensors wait, which of them are this scheduler's, when to look, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import json
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

import structlog
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from runner.authoring import Context, ReturnValueError
from runner.authoring.lookup import Provider, providing
from runner.authoring.patience import Patience
from runner.authoring.templates import mark, render
from runner.authoring.values import check_return_value
from runner.scheduler.sense.answers import Answer, Found, Kind, Never, NotYet, Waiting
from runner.scheduler.sense.asset import Assets
from runner.scheduler.sense.external_task import ExternalTask
from runner.scheduler.sense.file import File
from runner.scheduler.sense.http import Http
from runner.scheduler.sense.s3 import S3
from runner.scheduler.sense.sql import Sql
from runner.scheduler.sense.time import Time
from runner.state import transitions

log = structlog.get_logger(__name__)

CYCLE_SECONDS = 1.0
LOOK_SECONDS = 60.0  # longest that one look may take
LOOKS_AT_ONCE = 32
FRESH_SECONDS = 15.0  # a scheduler not heard of for longer has lost its sensors to the others
BATCH = 500  # sensors that are read, or ended, in one transaction

Ended = tuple[int, str, str | None, str | None]

# `started_at` is part of what is known: one that was cleared and waits again is another one.
_WHO = text("""
SELECT extract(epoch FROM clock_timestamp())::float8 AS now,
       (SELECT array_agg(id) FROM task_instance WHERE state = 'deferred') AS sensors,
       (SELECT array_agg(n.node_id) FROM node n JOIN node_heartbeat h USING (node_id)
        WHERE n.role = 'scheduler' AND n.state <> 'gone' AND h.at > now() - make_interval(secs => :fresh)) AS schedulers
""")
_READ = text("""
SELECT t.id, t.dag_id, t.task_id, t.run_id, t.bundle_version, d.sensor, r.run_type, r.logical_date, r.interval_start,
       r.interval_end, r.params, extract(epoch FROM t.started_at)::float8 AS since
FROM task_instance t JOIN dag_run r ON r.id = t.run_id
JOIN dag_task d ON d.dag_id = t.dag_id AND d.bundle_version = t.bundle_version AND d.task_id = t.task_id
WHERE t.id = ANY (:ids) AND t.state = 'deferred'
""")


class Sensing(threading.Thread):
    """Looks for what sensors wait for, in a thread of its own.

    Every scheduler knows all of them and looks after those groups that the highest hash of its name and the group's
    gives it, so the work is shared without a word, and the rest take over from one that is not heard of any more. Two
    that look after the same for a moment do no harm: a sensor ends once. Nothing is kept but in the database.
    """

    def __init__(
        self, engine: Engine, node_id: str, *, provider: Provider | None = None, fresh_seconds: float = FRESH_SECONDS
    ) -> None:
        super().__init__(name="sensing", daemon=True)
        self.beat = time.monotonic()  # of the last cycle: a loop that hangs shows
        self.waiting: dict[int, Waiting] = {}
        self._engine = engine
        self._node_id = node_id
        self._provider = provider
        self._fresh = fresh_seconds
        self._kinds: dict[str, Kind] = {
            "s3": S3(),
            "sql": Sql(),
            "http": Http(),
            "file": File(),
            "task": ExternalTask(engine),
            "time": Time(),
            "asset": Assets(engine),
        }
        self._skew = 0.0  # of the database's clock against ours
        self._schedulers: frozenset[str] = frozenset()
        self._mine: dict[str, bool] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._ended: dict[int, Ended] = {}
        self._said: dict[int, str | None] = {}
        self._stopping = threading.Event()

    def run(self) -> None:
        """Work until `stop`."""
        with providing(self._provider) if self._provider else contextlib.nullcontext():
            asyncio.run(self._run())

    def stop(self) -> None:
        """End the loop and wait for it."""
        self._stopping.set()
        self.join(10)

    async def _run(self) -> None:
        self._room = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._storing = asyncio.Lock()
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                await self._cycle()
            except DBAPIError as e:
                log.warning("database is away", action="sense", error=str(e.orig))
            except Exception:
                log.exception("sensing", action="sense")
            self.beat = time.monotonic()
            rest = CYCLE_SECONDS - (self.beat - began)
            while rest > 0 and not self._stopping.is_set():
                await asyncio.sleep(min(rest, 0.1))
                rest = CYCLE_SECONDS - (time.monotonic() - began)
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        for kind in self._kinds.values():
            await kind.close()

    # --- one cycle --------------------------------------------------------------------------------------------

    async def _cycle(self) -> None:
        """Learn who waits, end who has waited long enough, look where it is time."""
        await self._store()
        await self._learn()
        now = self._now()
        late = [w.id for w in self.waiting.values() if w.deadline <= now and self._is_mine(w.group)]
        if late:
            await self._time_out(late)
        due = {w.group for w in self.waiting.values() if w.due <= now and w.group not in self._asking}
        due = {group for group in due if self._is_mine(group)}
        if due:
            members: dict[str, list[Waiting]] = {}
            for w in self.waiting.values():
                if w.group in due:
                    members.setdefault(w.group, []).append(w)
            for group, waiting in members.items():
                self._asking[group] = asyncio.create_task(self._ask(group, waiting))

    async def _learn(self) -> None:
        row = await asyncio.to_thread(self._who)
        self._skew = row.now - time.time()
        schedulers = frozenset(row.schedulers or ()) | {self._node_id}
        if schedulers != self._schedulers:
            self._schedulers, self._mine = schedulers, {}
        ids = set(row.sensors or ())
        for gone in self.waiting.keys() - ids:
            del self.waiting[gone]
        new = sorted(ids - self.waiting.keys())
        for start in range(0, len(new), BATCH):
            self._add(await asyncio.to_thread(self._read, new[start : start + BATCH]))

    async def _time_out(self, late: Sequence[int]) -> None:
        """End them, unless they have been cleared since and wait anew."""
        rows = {row.id: row for row in await asyncio.to_thread(self._read, late)}
        for id in late:
            w = self.waiting[id]
            if id not in rows:
                continue
            if rows[id].since != w.since:
                w.since = rows[id].since
                continue
            state = "skipped" if w.patience.soft_fail else "failed"
            why = f"waited {w.patience.timeout} in vain" + (f"; {w.says}" if w.says else "")
            self._ended[id] = (id, state, None, why)
        await self._store()

    def _who(self) -> Any:
        with self._engine.begin() as connection:
            return connection.execute(_WHO, {"fresh": self._fresh}).one()

    def _read(self, ids: Sequence[int]) -> Sequence[Any]:
        with self._engine.begin() as connection:
            return connection.execute(_READ, {"ids": list(ids)}).all()

    def _add(self, rows: Sequence[Any]) -> None:
        for row in rows:
            if row.id in self._ended:
                continue
            try:
                w = _waiting(row)
                w.group = self._kinds[w.kind].group(w.condition)
            except Exception as e:  # a template without a value, a URL that is none, a kind of a later release
                why = f"unknown kind of sensor {e}" if isinstance(e, KeyError) else str(e)
                self._ended[row.id] = (row.id, "failed", None, _line(why))
            else:
                self.waiting[row.id] = w

    def _is_mine(self, group: str) -> bool:
        mine = self._mine.get(group)
        if mine is None:
            mine = self._mine[group] = owner(group, self._schedulers) == self._node_id
        return mine

    def _now(self) -> float:
        return time.time() + self._skew

    # --- looking ----------------------------------------------------------------------------------------------

    async def _ask(self, group: str, waiting: Sequence[Waiting]) -> None:
        answers: dict[int, Answer]
        try:
            async with self._room, asyncio.timeout(LOOK_SECONDS):
                answers = dict(await self._kinds[waiting[0].kind].look(waiting, self._now()))
        except TimeoutError:
            answers = dict.fromkeys((w.id for w in waiting), NotYet(f"no answer within {LOOK_SECONDS:g} s"))
        except Exception as e:
            why = _line(f"{type(e).__name__}: {e}")
            log.warning("sensors cannot look", action="sense", group=group[:200], error=why)
            answers = dict.fromkeys((w.id for w in waiting), NotYet(why))
        finally:
            self._asking.pop(group, None)
        now = self._now()
        for w in waiting:
            self._note(w, answers.get(w.id), now)
        try:
            await self._store()
        except DBAPIError as e:  # kept, and stored with the next cycle
            log.warning("database is away", action="sense", error=str(e.orig))

    def _note(self, w: Waiting, answer: Answer | None, now: float) -> None:
        if isinstance(answer, Found):
            self._ended[w.id] = _success(w.id, answer.value)
            return
        if isinstance(answer, Never):
            self._ended[w.id] = (w.id, "failed", None, _line(answer.why))
            return
        again = answer.again if answer else None
        w.due = (
            again if again is not None else now + w.patience.pause(dt.timedelta(seconds=now - w.since)).total_seconds()
        )
        says = _line(answer.why) if answer and answer.why else None
        if says != w.says:
            w.says = self._said[w.id] = says

    async def _store(self) -> None:
        """Write down what is known. What cannot be written now stays for the next time."""
        async with self._storing:
            while self._ended or self._said:
                ended = [self._ended[id] for id in list(self._ended)[:BATCH]]
                said = list(self._said.items())[:BATCH]
                await asyncio.to_thread(self._write, ended, said)
                for row in ended:
                    del self._ended[row[0]]
                    self.waiting.pop(row[0], None)
                for id, says in said:
                    if self._said.get(id) == says:
                        del self._said[id]

    def _write(self, ended: Sequence[Ended], said: Sequence[tuple[int, str | None]]) -> None:
        with self._engine.begin() as connection:
            transitions.sensor_says(connection, said)
            transitions.sensed(connection, ended)


def _success(id: int, value: Any) -> Ended:
    try:
        plain = check_return_value("sensor", value)
    except ReturnValueError as e:
        return id, "failed", None, _line(str(e))
    return id, "success", None if plain is None else json.dumps(plain), None


def _line(said: str) -> str:
    """One line that PostgreSQL can hold."""
    return " ".join(said.replace("\x00", "").split())[:500]


def owner(group: str, schedulers: Collection[str]) -> str:
    """Which of these schedulers looks after a group: rendezvous hashing, so one that leaves moves only its own."""
    return max(schedulers, key=lambda name: hashlib.blake2b(f"{name}\0{group}".encode(), digest_size=8).digest())


def _waiting(row: Any) -> Waiting:
    """Raises TemplateError, KeyError, ValueError for a condition that cannot be asked."""
    context = Context(
        dag_id=row.dag_id,
        run_id=str(row.run_id),
        task_id=row.task_id,
        run_type=row.run_type,
        logical_date=row.logical_date,
        interval_start=row.interval_start,
        interval_end=row.interval_end,
        params=row.params,
        bundle_version=row.bundle_version,
    )
    patience = Patience.from_json(row.sensor)
    condition = {k: v for k, v in row.sensor.items() if k not in Patience.__dataclass_fields__}
    filled = render(mark(condition, f"task {row.task_id!r}", check=False), context)
    return Waiting(row.id, filled.pop("kind"), filled, patience, row.since)
