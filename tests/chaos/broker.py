"""Faults of the broker: whatever it forgets or says twice, the database knows better."""

from __future__ import annotations

import redis

from runner.localcloud.engines import Valkey
from runner.state.transitions import Message

from .fleet import Fleet, Inconclusive
from .registry import scenario


@scenario("broker-flush", 6)
def broker_flush(f: Fleet) -> None:
    """FLUSHALL at random: messages are hints, the database sends them again."""
    f.start(workers=2)
    for _ in f.rounds(6):
        f.run("wide", 3, seconds=[0.02, 0.2])
        f.pause(0.0, 0.4)
        f.engines.flush()
        f.pause(0.0, 0.4)


@scenario("broker-restart", 6)
def broker_restart(f: Fleet) -> None:
    """KILL the broker while tasks run and start it again: no task is stopped, none is lost."""
    f.start(workers=2)
    for _ in f.rounds(2):
        f.run("wide", 2, seconds=[0.1, 0.5])
        f.busy(2)
        _restart(f)
        f.pause(0.2, 1.0)


@scenario("broker-flapping", 6)
def broker_flapping(f: Fleet) -> None:
    """KILL the broker again and again while messages are being answered: no worker ends of it."""
    f.start(workers=2)
    for _ in f.rounds(5):
        f.run("wide", 6, seconds=[0.0, 0.05])
        f.busy()
        f.pause(0.0, 0.5)
        f.engines.kill_broker()
        f.pause(0.0, 0.2)
        f.engines.valkey.start()
        f.pause(0.2, 0.6)


@scenario("broker-restart-drain", 6)
def broker_restart_drain(f: Fleet) -> None:
    """KILL the broker while a node drains: it finishes what it runs, claims no more, and says that it is drained."""
    f.start(workers=2)
    for i in f.rounds(2):
        f.run("wide", 2, seconds=[0.2, 0.8])
        old = f.workers()[0]
        f.busy(2, old.node_id)
        f.cordon(old.node_id)
        f.pause(0.0, 0.3)
        _restart(f)
        f.wait(lambda o=old: f.state(o.node_id) == "drained", f"{old.node_id} is drained")
        f.terminate(old)
        f.registered(f.spawn("worker", f"w{i + 3}"))


def _restart(f: Fleet) -> None:
    f.engines.kill_broker()
    f.pause(0.2, 1.5)
    f.engines.valkey.start()


@scenario("broker-lost-writes", 6)
def broker_lost_writes(f: Fleet) -> None:
    """A replica that lags takes over: the newest messages are lost, and many that were answered are there again."""
    replica = Valkey(f.directory / "replica")
    watch = str(f.directory / "w1.refused")
    f.link("w1"), f.link("w2"), f.link("s1")
    try:
        f.start(workers=2, CHAOS_WATCH=watch)
        for _ in f.rounds(2):
            replica.start()
            with redis.Redis.from_url(replica.url) as client:
                host, port = f.engines.broker_address()
                client.replicaof(host, port)
                f.wait(lambda c=client: c.info("replication")["master_link_status"] == "up", "the replica follows")
                f.run("wide", 4, seconds=[0.1, 0.4])
                f.busy(6)
                rows = f.all("SELECT id, attempt, queue FROM task_instance WHERE state IN ('queued', 'running')")
                f.doorbell.ring([Message(*row) for row in rows])
                f.wait(lambda c=client: c.llen("default") > 0, "messages wait in the replica")
                client.replicaof("NO", "ONE")  # from here on it hears of nothing more
                f.pause(0.3, 1.0)
            _broker_is(f, replica)
            f.wait(f.over, "all runs end with the replica as the broker", seconds=120)
            f.engines.flush()
            _broker_is(f, f.engines.valkey)
            replica.stop()
    finally:
        replica.stop()
    if not f.refused():
        raise Inconclusive("no message was answered twice")


def _broker_is(f: Fleet, server: Valkey) -> None:
    port = int(server.url.rsplit(":", 1)[1].split("/")[0])
    for link in f.links.values():
        link.broker.upstream = lambda: ("127.0.0.1", port)
        link.broker.reset()
