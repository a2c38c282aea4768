"""Orders to machines: which nodes are its own, and what an order back does to them."""

from __future__ import annotations

from sqlalchemy import Connection, Engine

from runner.state import nodes, orders, queries
from runner.state.nodes import NodeInfo


def register(c: Connection, node_id: str, release: str) -> None:
    nodes.register(c, NodeInfo(node_id, "worker", "default", release, f"boot of {node_id}", slots=1))


def order(c: Connection, release: str) -> bool:
    return orders.give(c, "i-1", release, reason="roll 7", by="someone", drain_seconds=60)


def test_a_machine_has_its_own_node_and_those_beside_it(engine: Engine) -> None:
    with engine.begin() as c:
        for node_id, release in (("i-1", "a"), ("i-1.b", "b"), ("i-11", "a"), ("i-1.other", "b"), ("i-2.b", "b")):
            register(c, node_id, release)
        nodes.gone(c, "i-1", cause="test")
        assert [(n.node_id, n.state) for n in queries.machine(c, "i-1")] == [("i-1", "gone"), ("i-1.b", "ready")]


def test_an_order_is_given_once_and_says_why_it_cannot_be_done(engine: Engine) -> None:
    with engine.begin() as c:
        assert orders.find(c, "i-1") is None
        assert order(c, "b")
        assert not order(c, "b")
        assert orders.find(c, "i-1") == orders.Order("b", "roll 7", "someone", 60.0, None)
        orders.failed(c, "i-1", "a", "of an order that is not there any more")
        orders.failed(c, "i-1", "b", "no such release")
        found = orders.find(c, "i-1")
        assert found is not None and found.error == "no such release"
        assert order(c, "c")
        assert orders.find(c, "i-1") == orders.Order("c", "roll 7", "someone", 60.0, None)


def test_an_order_back_lets_the_old_node_serve_again_and_nobody_else(engine: Engine) -> None:
    with engine.begin() as c:
        register(c, "i-1", "a")
        register(c, "i-1.b", "b")
        register(c, "i-2", "a")
        for node_id in ("i-1", "i-2"):
            nodes.cordon(c, node_id, reason="roll 7", by="someone", deadline_seconds=60)
        assert order(c, "b")
        assert [n.state for n in queries.machine(c, "i-1")] == ["draining", "ready"]
        assert order(c, "a")
        assert [n.state for n in queries.machine(c, "i-1")] == ["ready", "ready"]
        assert [n.state for n in queries.machine(c, "i-2")] == ["draining"]
        # Also one that was done: its service is started again
        nodes.gone(c, "i-1.b", cause="replaced")
        assert order(c, "b")
        assert [n.state for n in queries.machine(c, "i-1")] == ["ready", "ready"]
