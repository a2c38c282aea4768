"""The broker: a doorbell that says which attempts are due.

What is rung is the id and the attempt of a task instance; whether there is anything to do is decided in the
database. So losing the whole broker delays work and loses none, and who owns it cannot make a worker run code.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from runner.state.transitions import Message

TASK = "sluice.execute"
AWAY = (OperationalError, OSError, RedisError)  # opening a connection raises the client's own errors, unwrapped
log = structlog.get_logger(__name__)


def celery_app(broker_url: str) -> Celery:
    """The Celery application, the same for who rings and who answers.

    Early acknowledgements and no visibility timeout to speak of: the lease brings lost work back, not the broker.
    No prefetch beyond the slots, no results, no ETA, no gossip; JSON only; sockets that give up.
    """
    app = Celery("sluice", broker=broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_create_missing_queues=True,
        task_default_delivery_mode="transient",
        task_send_sent_event=False,
        worker_send_task_events=False,
        # Its subscription shares the event loop, and redis-py reconnects inside a read that then waits for ever: after
        # a quick failover of the broker such a worker consumes nothing more.
        worker_enable_remote_control=False,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=3,
        broker_transport_options={
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "retry_on_timeout": True,
            # What was taken is the database's: nothing is to be put back when a connection breaks, and kombu's own
            # attempt at that, on a connection that has broken, ends the worker.
            "ack_emulation": False,
            # never reached by an early-acknowledged message; short would only re-send what is reserved
            "visibility_timeout": 86_400,
        },
    )
    return app


class Doorbell:
    """Rings for messages whose queueing is committed. Not thread-safe: one per thread."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._producer = None
        self._queues: dict[str, Queue] = {}

    def ring(self, messages: Iterable[Message]) -> int:
        """Publish; returns how many went out. A broker that is away is not an error: they are sent again later."""
        sent = 0
        try:
            for message in messages:
                self._send(message)
                sent += 1
        except AWAY as e:
            self.close()
            log.warning("broker is away; the messages will be sent again", action="ring", error=str(e))
        return sent

    def _send(self, message: Message) -> None:
        if self._producer is None:
            self._producer = self._app.amqp.Producer(self._app.connection_for_write().channel())
        queue = self._queues.get(message.queue)
        if queue is None:
            queue = self._queues[message.queue] = Queue(message.queue)
        self._app.send_task(
            TASK,
            args=(message.task_instance, message.attempt),
            queue=queue,
            producer=self._producer,
            ignore_result=True,
            retry=False,
        )

    def close(self) -> None:
        """Drop the connection; the next ring opens one again."""
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                producer.channel.connection.client.close()
            except AWAY:
                log.debug("closing a dead broker connection", action="ring")
