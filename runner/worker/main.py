"""A worker: Celery in the foreground, with the claim, the lease and the drain around it."""

from __future__ import annotations

import signal
import socket
import uuid
from pathlib import Path

import structlog
from celery import signals as celery_signals
from kombu.entity import Queue
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from runner import bundle
from runner.settings import Settings
from runner.state import bundles, nodes, queries, rollouts
from runner.state.db import connect
from runner.state.doorbell import TASK, Doorbell, celery_app
from runner.state.nodes import NodeInfo
from runner.storage import Storage, log_prefix
from runner.telemetry import systemd
from runner.worker.attempts import Attempts
from runner.worker.children import ChildDied, Children
from runner.worker.drain import Drain, IdleWatch, boot_step
from runner.worker.execute import Executor
from runner.worker.finish import Finisher
from runner.worker.heartbeat import Heartbeat
from runner.worker.leftovers import remove_containers
from runner.worker.logs import LogShipper
from runner.worker.lookup import Lookup
from runner.worker.pool import SlotPool
from runner.worker.prefetch import Prefetch
from runner.worker.values import Values

log = structlog.get_logger(__name__)


class Worker:
    """What one `runner worker` process is made of."""

    def __init__(self, settings: Settings) -> None:
        settings.require("database_url", "broker_url", "storage_url", "artifacts_url", "node_id")
        self.settings = settings
        self.boot_id = uuid.uuid4().hex
        self.engine: Engine = connect(
            settings.database(), pool_size=settings.slots + 3, application_name=f"worker {settings.node_id}", hot=True
        )
        settings.home.mkdir(parents=True, exist_ok=True)
        self.celery = celery_app(settings.broker())
        storage = Storage.open(settings.storage_url)
        self.shipper = LogShipper(storage)
        self.children = Children(self._fetch, settings.home / "bundles.log", recycle_mb=settings.recycle_mb)
        own = nodes.queue_of(settings.node_id)
        self.queues = [*settings.queue_list, own]
        self.attempts = Attempts()
        self.drain = Drain(self.queues, own)
        self.stopping = False
        self.finisher = Finisher(
            self.engine,
            Doorbell(self.celery),
            settings.home / "spool",
            self.attempts,
            node_id=settings.node_id,
            queues=self.drain.taking,
            lease_seconds=settings.lease_seconds,
            taking=lambda: not self.stopping,
        )
        values = Values(storage, inline_bytes=settings.xcom_inline_bytes, max_bytes=settings.xcom_max_bytes)
        self.executor = Executor(
            settings,
            self.engine,
            self.children,
            self.attempts,
            self.finisher,
            self.shipper,
            values,
            Lookup(self.engine, settings.secret_key, settings.region),
            self.drain,
            self.refused,
        )
        self.prefetch = Prefetch(self.engine, self._fetch)
        self.heartbeat = Heartbeat(settings, self.engine, self.attempts, self.register, self.obey)
        self.idle_watch = IdleWatch(self.drain, lambda: len(self.attempts) > 0, self.drained)

    def register(self) -> None:
        """Say in the database that this worker is up; a node that drains stays draining."""
        info = NodeInfo(
            node_id=self.settings.node_id,
            role="worker",
            pool=self.settings.pool,
            release=self.settings.release,
            boot_id=self.boot_id,
            slots=self.settings.slots,
            queues=self.queues,
            instance_id=self.settings.instance_id,
            address=socket.gethostname(),
        )
        with self.engine.begin() as connection:
            state = nodes.register(connection, info)
            brought = rollouts.brings(connection, "worker", info.pool, info.release)
        if brought:
            self.drain.prove()
        log.info("registered", action="register", node=info.node_id, state=state, release=info.release)

    def obey(self, orders: nodes.Orders) -> None:
        """Act on the answer to a heartbeat."""
        self.drain.obey(orders)
        if orders.state == "ready":
            self.prefetch.look(orders.deploy)

    def refused(self) -> None:
        """The database let this node claim nothing: stop consuming, and ask at once what the orders are."""
        self.drain.pause()
        self.heartbeat.soon()

    def drained(self) -> bool:
        """Say that nothing runs here any more; False while a log is not stored or the database knows of a lease."""
        if not self.shipper.flush():
            return False
        with self.engine.begin() as connection:
            done = nodes.drained(connection, self.settings.node_id)
        if done:
            log.info("drained", action="drain")
        return done

    def run(self) -> int:
        """Work until TERM: then finish what runs, and exit. Returns the exit status."""
        executor = self.executor

        def execute(task_instance: int, attempt: int) -> None:
            executor.execute(task_instance, attempt)

        self.celery.task(name=TASK)(execute)
        self.celery.conf.task_queues = [Queue(name) for name in self.queues]
        self.celery.steps["consumer"].add(boot_step(self.drain))
        self.finisher.recover()  # before the new boot id says that nothing of the last start is left
        self.finisher.start()
        self.shipper.recover(self.executor.logs, self._log_prefix)
        self.shipper.start()
        remove_containers(self.settings.node_id)
        self.register()
        self.heartbeat.start()
        self.idle_watch.start()
        worker = self.celery.Worker(
            pool=SlotPool,
            concurrency=self.settings.slots,
            hostname=f"{self.settings.node_id}@{socket.gethostname()}",
            queues=self.queues,
            loglevel=self.settings.log_level.upper(),
            without_gossip=True,
            without_mingle=True,
            quiet=True,
        )
        celery_signals.worker_shutting_down.connect(self._stop, weak=False)
        systemd.notify("READY=1")
        try:
            worker.start()
        finally:
            self.close()
        return int(worker.exitcode or 0)

    def _log_prefix(self, task_instance: int, attempt: int) -> str | None:
        with self.engine.begin() as connection:
            found = queries.task_instance(connection, task_instance)
        if found is None:
            return None
        return log_prefix(found.dag_id, found.run_id, found.task_id, attempt, found.map_index)

    def _stop(self, **_: object) -> None:
        self.stopping = True  # what runs is finished, and no slot takes more

    def close(self) -> None:
        """After Celery has ended: what finished is committed, its logs are stored, the children are gone."""
        self.finisher.stop()
        self.shipper.flush()
        self.shipper.stop()
        self.idle_watch.stop()
        self.heartbeat.stop()
        self.children.close()
        self.engine.dispose()

    def _fetch(self, version: str) -> Path:
        try:
            with self.engine.begin() as connection:
                sha256 = bundles.find(connection, version).sha256
        except DBAPIError as e:  # nobody's failure: the task is handed on
            raise ChildDied(f"the database did not say what the bundle is: {e.orig}", int(signal.SIGTERM)) from None
        storage = Storage.open(self.settings.artifacts_url)
        return bundle.fetch(version, storage=storage, cache=self.settings.home / "bundles", sha256=sha256)


def run(settings: Settings) -> int:
    """Entry point of `runner worker`."""
    return Worker(settings).run()
