"""When a draining worker is idle: two looks in a row that find nothing, and the database's word."""

from __future__ import annotations

import threading

import pytest

from runner.state.nodes import Orders
from runner.worker import drain as drains
from runner.worker.drain import Drain, IdleWatch


def orders(state: str) -> Orders:
    return Orders(state, None, None, frozenset(), frozenset(), frozenset())


class Worker:
    """A draining worker that consumes nothing and runs nothing."""

    def __init__(self) -> None:
        self.drain = Drain(["default"])
        self.drain.obey(orders("draining"))
        self.reserved = 0
        self.drain.reserved = lambda: self.reserved  # type: ignore[method-assign]
        self.busy = False
        self.allowed = True
        self.said = 0
        self.heard = threading.Event()
        self.watch = IdleWatch(self.drain, lambda: self.busy, self.say)

    def say(self) -> bool:
        self.said += 1
        self.heard.set()
        return self.allowed

    def look(self, times: int) -> int:
        """How often it said so during these looks."""
        before = self.said
        for _ in range(times):
            self.watch.look()
        return self.said - before


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_one_look_is_not_enough_and_it_is_said_once(worker: Worker) -> None:
    assert worker.look(1) == 0
    assert worker.look(1) == 1
    assert worker.look(5) == 0


@pytest.mark.parametrize("reason", ["consuming", "reserved", "busy", "not draining"])
def test_whatever_is_under_way_starts_the_row_again(worker: Worker, reason: str) -> None:
    def set_to(there: bool) -> None:
        if reason == "consuming":
            (worker.drain.consuming.set if there else worker.drain.consuming.clear)()
        elif reason == "reserved":
            worker.reserved = int(there)
        elif reason == "busy":
            worker.busy = there
        else:
            worker.drain.obey(orders("ready" if there else "draining"))

    # Given one idle look, when something is there at the next, then two more idle looks are needed
    assert worker.look(1) == 0
    set_to(True)
    assert worker.look(3) == 0
    set_to(False)
    assert worker.look(1) == 0
    assert worker.look(1) == 1


def test_a_lease_in_the_database_makes_it_look_again(worker: Worker) -> None:
    worker.allowed = False
    assert worker.look(4) == 2
    worker.allowed = True
    assert worker.look(4) == 1


def test_the_thread_looks_by_itself_and_ends(worker: Worker) -> None:
    worker.watch.start()
    assert worker.heard.wait(5)
    worker.watch.stop()
    assert worker.said == 1


def test_the_thread_ends_while_nothing_drains(worker: Worker) -> None:
    worker.drain.obey(orders("ready"))
    worker.watch.start()
    worker.watch.stop()
    assert worker.said == 0


class Consumer:
    """Celery's, as far as a Drain touches it."""

    def __init__(self) -> None:
        self.queues: set[str] = set()

    def add_task_queue(self, queue: str) -> None:
        assert queue not in self.queues
        self.queues.add(queue)

    def cancel_task_queue(self, queue: str) -> None:
        self.queues.remove(queue)


def test_what_is_consumed_follows_the_orders_and_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    drain, consumer = Drain(["default", "node.n1"], "node.n1"), Consumer()

    def seen() -> set[str]:
        drain.look(consumer)
        assert drain.consuming.is_set() == bool(consumer.queues)
        return consumer.queues

    def connect() -> None:
        consumer.queues = {"default", "node.n1"}
        drain.connected()

    # Given a node that is to prove itself
    drain.prove()
    connect()
    assert seen() == {"node.n1"} == set(drain.taking())
    # Whatever else happens, that stays
    drain.obey(orders("draining"))
    assert seen() == set()
    connect()
    assert seen() == set()
    drain.obey(orders("ready"))
    assert seen() == {"node.n1"}
    # Until it has
    drain.proven()
    assert seen() == {"default", "node.n1"} == set(drain.taking())
    drain.proven()
    assert seen() == {"default", "node.n1"}
    # Or until nobody has come for long enough
    drain.prove()
    assert seen() == {"node.n1"}
    monkeypatch.setattr(drains, "PROOF_SECONDS", 0.0)
    drain.prove()
    assert seen() == {"default", "node.n1"}
