"""Celery's remote control: what workers consume and do, told to them and asked of them through their broker.

Silence is never read as idleness: who does not answer is simply not in the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from celery import Celery
from kombu.exceptions import OperationalError

from runner.rollout.celery_fleet.spec import Broker
from runner.settings import SluiceError

_ANSWER_SECONDS = 1.0  # a worker answers in milliseconds; one that is slow today is asked again
T = TypeVar("T")


class Control:
    """The workers of one host. Each thread has its own, with its own connection.

    Every method raises SluiceError if the broker does not answer.
    """

    def __init__(self, broker: Broker, workers: Sequence[str]) -> None:
        self.workers = list(workers)
        self._app = Celery("deployctl", broker=broker.url, set_as_current=False)
        self._app.conf.update(
            broker_transport_options={
                "socket_timeout": 10,
                "socket_connect_timeout": 5,
                "max_retries": 1,
                **broker.transport_options,
            },
            control_exchange=broker.control_exchange,
            broker_connection_timeout=5,
            broker_connection_max_retries=1,
            task_ignore_result=True,
        )

    def close(self) -> None:
        """Give the connection back."""
        self._app.close()

    def answering(self) -> set[str]:
        """Those that answer."""
        if not self.workers:  # nobody named would mean everybody
            return set()
        found = self._try(lambda: self._inspect(self.workers).ping())
        return set(found or {}) & set(self.workers)

    def queues(self, workers: Sequence[str]) -> dict[str, list[str]]:
        """Worker → the queues it consumes now, of those that answer."""
        found = self._try(lambda: self._inspect(workers).active_queues()) or {}
        return {w: [q["name"] for q in queues] for w, queues in found.items()}

    def at_hand(self, workers: Sequence[str], *, scheduled: bool) -> dict[str, int]:
        """Worker → how many tasks it runs or has taken to run, of those that answer all questions.

        scheduled: also those whose countdown has not come yet. A worker that is stopped gives them back to the broker;
        one whose machine goes does not.
        """
        # In the order in which a task passes through them: one that moves meanwhile is seen twice, not never.
        questions = (["scheduled"] if scheduled else []) + ["reserved", "active"]
        found = [self._try(getattr(self._inspect(workers), question)) or {} for question in questions]
        return {
            w: len({t.get("request", t)["id"] for answer in found for t in answer[w]})
            for w in workers
            if all(w in answer for answer in found)
        }

    def cancel(self, queues: Mapping[str, Sequence[str]]) -> None:
        """Tell workers to take no more tasks from these of their queues."""
        for worker, names in queues.items():
            for name in names:
                self._tell("cancel_consumer", worker, name)

    def consume(self, queues: Mapping[str, Sequence[str]]) -> None:
        """Tell workers to take tasks from these queues again."""
        for worker, names in queues.items():
            for name in names:
                self._tell("add_consumer", worker, name)

    def _tell(self, order: str, worker: str, queue: str) -> None:
        control = self._app.control
        self._try(lambda: getattr(control, order)(queue, destination=[worker], reply=True, timeout=_ANSWER_SECONDS))

    def _inspect(self, workers: Sequence[str]) -> Any:
        return self._app.control.inspect(destination=list(workers), timeout=_ANSWER_SECONDS)

    def _try(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except (OperationalError, OSError, *self._app.connection_for_write().connection_errors) as e:
            said = " ".join(str(e).split()) or type(e).__name__
            raise SluiceError(
                f"the broker does not answer: {said}", "is broker.url right, and reached from here?"
            ) from e
