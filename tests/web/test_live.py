from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from runner.state.queries import EventRow
from runner.web.live import EventReader, Hub

from .conftest import World

ADD = "INSERT INTO event (kind, subject, state) VALUES ('node', :s, 'ready')"


def row(event_id: int, kind: str = "task", run_id: int | None = 1, subject: str = "7") -> EventRow:
    return EventRow(event_id, dt.datetime.now(dt.UTC), kind, subject, "running", run_id, 1, None, None)


def messages(chunk: str) -> list[tuple[str, Any]]:
    found = []
    for block in chunk.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


# --- reading --------------------------------------------------------------------------------------------------


def test_an_event_that_commits_late_is_not_missed(engine: Engine, world: World) -> None:
    """Given ids handed out in order, when the transactions commit in another, then each event is read once."""
    reader = EventReader()
    with engine.connect() as c:
        reader.start(c)
    with engine.connect() as slow, engine.connect() as undone, engine.connect() as c:
        slow.execute(text(ADD), {"s": "slow"})
        undone.execute(text(ADD), {"s": "undone"})
        world.sql(ADD, s="quick")
        assert [e.subject for e in reader.read(c)] == ["quick"]
        assert reader.read(c) == []
        slow.commit()
        undone.rollback()
        c.rollback()
        assert [e.subject for e in reader.read(c)] == ["slow"]
        world.sql(ADD, s="next")
        c.rollback()
        assert [e.subject for e in reader.read(c)] == ["next"]


def test_what_was_open_when_reading_began_is_not_missed(engine: Engine, world: World) -> None:
    with engine.connect() as slow, engine.connect() as c:
        slow.execute(text(ADD), {"s": "slow"})
        world.sql(ADD, s="quick")
        reader = EventReader()
        reader.start(c)
        slow.commit()
        c.rollback()
        assert [e.subject for e in reader.read(c)] == ["slow"]


# --- fanning out ------------------------------------------------------------------------------------------------


def test_a_stream_gets_what_it_asked_for(engine: Engine) -> None:
    async def play() -> None:
        hub = Hub(engine)
        with (
            hub.subscribe(frozenset({"run:1"})) as one,
            hub.subscribe(frozenset({"node", "task:8"})) as other,
            hub.subscribe(frozenset({"*"})) as everything,
        ):
            hub.publish([row(1), row(2, run_id=2, subject="8"), row(3, "node", None, "n1"), row(4, "run", 1, "1")])
            assert [e.id for e in one.take()[0]] == [1, 4]
            assert [e.id for e in other.take()[0]] == [2, 3]
            assert [e.id for e in everything.take()[0]] == [1, 2, 3, 4]
        assert hub.streams == 0

    asyncio.run(play())


def test_pages_that_nothing_concerns_cost_nothing(engine: Engine, world: World) -> None:
    """Given one idle page or two hundred, the database is asked equally often; given none, not at all."""
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *a: asked.append(a[2]))

    async def polls(pages: int) -> int:
        hub = Hub(engine, poll_seconds=0.02)
        task = asyncio.create_task(hub.run())
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(hub.subscribe(frozenset({f"run:{i}"}))) for i in range(pages)]
            await asyncio.sleep(0.15)
            asked.clear()
            await asyncio.sleep(0.3)
            n = len(asked)
            woken = [s for s in idle if s.pending]
        hub.close()
        await task
        assert not woken
        return n

    async def play() -> None:
        assert await polls(0) == 0
        one, many = await polls(1), await polls(200)
        assert one > 3
        assert many < 2 * one

    asyncio.run(play())


def test_a_slow_reader_is_told_to_read_all_again(engine: Engine) -> None:
    async def play() -> None:
        hub = Hub(engine)
        stream = hub.stream(frozenset({"*"}))
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await until(lambda: hub.streams == 1)
        hub.publish([row(i) for i in range(1, 800)])
        assert messages(await waiting) == [("reset", {})]
        hub.close()

    asyncio.run(play())


def test_a_stream_that_comes_back_gets_what_it_missed(engine: Engine) -> None:
    async def play() -> None:
        hub = Hub(engine)
        hub.publish([row(5), row(4), row(6, run_id=2), row(7)])  # 4 committed after 5

        async def first(last: int) -> list[tuple[str, Any]]:
            stream = hub.stream(frozenset({"run:1"}), last_event_id=last)
            await anext(stream)
            return messages(await anext(stream))

        ((kind, missed),) = await first(5)
        assert (kind, [e["id"] for e in missed]) == ("events", [4, 7])
        assert await first(3) == [("reset", {})]

    asyncio.run(play())


def test_a_page_hears_at_most_so_often_and_never_misses_the_last_change(engine: Engine) -> None:
    async def play() -> None:
        hub = Hub(engine)
        stream = hub.stream(frozenset({"*"}), brief=True, every_seconds=0.3)
        assert messages(await anext(stream) + await anext(stream)) == [("changed", {"kinds": []})]
        loop = asyncio.get_running_loop()
        began, heard = loop.time(), []
        feed = asyncio.create_task(_feed(hub, 40))
        while not feed.done() or len(heard) < 3:
            heard.append((loop.time() - began, messages(await anext(stream))))
        assert 2 <= len(heard) <= 3 + heard[-1][0] / 0.3  # a machine that is slow takes longer to feed it
        assert all(m == [("changed", {"kinds": ["task"]})] for _, m in heard)
        hub.close()

    async def _feed(hub: Hub, n: int) -> None:
        for i in range(1, n + 1):
            hub.publish([row(i)])
            await asyncio.sleep(0.02)

    asyncio.run(play())


def test_polling_goes_on_when_the_database_comes_back(engine: Engine, world: World) -> None:
    async def play() -> None:
        hub = Hub(engine, poll_seconds=0.02)
        task = asyncio.create_task(hub.run())
        with hub.subscribe(frozenset({"node"})) as stream:
            await until(lambda: stream.overflow)  # the first look
            stream.take()
            broken = Hub._read
            calls = 0

            def fail(_: Hub) -> list[EventRow]:
                nonlocal calls
                calls += 1
                raise OSError("away")

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Hub, "_read", fail)
                await until(lambda: calls > 2)
            assert Hub._read is broken
            world.sql(ADD, s="n7")
            await until(lambda: bool(stream.pending))
        hub.close()
        await task

    asyncio.run(play())
