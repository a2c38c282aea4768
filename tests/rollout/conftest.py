"""A pool whose machines are rows: the cloud in memory, the nodes in a real database, workers played in a turn."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import Engine, text

from runner.authoring.spec import DagSpec, TaskSpec
from runner.rollout.facts import Group, Instance
from runner.settings import SluiceError, UsageError
from runner.state import bundles, nodes, queries, transitions

GROUP = "sluice-test-worker-default"


@dataclass
class FakeCloud:
    """Stands in for `runner.rollout.cloud.Cloud`: one group."""

    desired: int = 2
    minimum: int = 2
    maximum: int = 4
    release: str = "old"
    members: dict[str, Instance] = field(default_factory=dict)
    trouble: Exception | None = None
    launched: int = 0

    def group(self, name: str) -> Group:
        if self.trouble:
            raise self.trouble
        if name != GROUP:
            raise UsageError(f"there is no autoscaling group {name}")
        return Group(name, self.desired, self.minimum, self.maximum, self.release, tuple(self.members.values()))

    def set_release(self, name: str, release: str) -> None:
        self.release = release

    def set_desired(self, name: str, count: int) -> None:
        if count > self.maximum:
            raise SluiceError("too many")
        self.desired = count

    def terminate(self, instance_id: str, *, decrement: bool) -> None:
        self.desired -= decrement
        self.members[instance_id] = replace(self.members[instance_id], lifecycle="Terminating:Wait")

    def launch_error(self, name: str, since: dt.datetime) -> str:
        return ""

    def existing(self, instance_ids: Sequence[str]) -> set[str]:
        return set(instance_ids) & set(self.members)

    def reconcile(self) -> None:
        staying = [m for m in self.members.values() if not m.leaving]
        for _ in range(self.desired - len(staying)):
            self.launched += 1
            self.members[f"i-{self.launched}"] = Instance(f"i-{self.launched}", "InService", self.release)


class Pool:
    """The fleet of these tests."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cloud: Any = FakeCloud()
        self.broken: set[str] = set()  # releases whose workers never register
        self.failing: set[str] = set()  # releases whose tasks fail
        spec = DagSpec(dag_id="sluice_heartbeat", tasks=(TaskSpec(task_id="beat"),))
        with engine.begin() as c:
            bundles.register_and_activate(
                c, version="builtin", name="builtin", url="", size=0, specs=[spec], who="test"
            )
        self.cloud.reconcile()
        self.play()

    def play(self) -> None:
        """What the cloud, the agents, the workers and a scheduler do in a moment."""
        self.cloud.reconcile()
        for m in list(self.cloud.members.values()):
            with self.engine.begin() as c:
                node = queries.node(c, m.instance_id)
                if m.release not in self.broken:
                    if node is None or node.release != m.release:
                        self._register(c, m)
                    nodes.heartbeat(c, m.instance_id)
                    if node and node.state == "draining":
                        nodes.drained(c, m.instance_id)
            if m.leaving and (node is None or node.state == "drained" or m.release in self.broken):
                del self.cloud.members[m.instance_id]
        with self.engine.begin() as c:
            messages = transitions.dispatch(c)
        for message in messages:
            node_id = message.queue.removeprefix("node.")
            with self.engine.begin() as c:
                claim = transitions.claim(c, message.task_instance, message.attempt, node_id=node_id, lease_seconds=300)
                if claim is None:
                    continue
                view = queries.node(c, node_id)
                bad = view is not None and view.release in self.failing
                outcome = transitions.Outcome(
                    claim.task_instance,
                    claim.token,
                    "failed" if bad else "success",
                    error="ImportError: no module" if bad else None,
                )
                transitions.finish(c, [outcome])

    def _register(self, c: Any, m: Instance) -> None:
        queues = ("default", nodes.queue_of(m.instance_id))
        info = nodes.NodeInfo(
            m.instance_id, "worker", "default", m.release, "boot", slots=2, queues=queues, instance_id=m.instance_id
        )
        nodes.register(c, info)

    def serving(self) -> dict[str, str]:
        """Node → release of those that are ready."""
        with self.engine.connect() as c:
            return {n.node_id: n.release for n in queries.fleet(c) if n.state == "ready"}

    def one(self, sql: str, **values: Any) -> Any:
        with self.engine.connect() as c:
            return c.execute(text(sql), values).scalar()

    def age_steps(self, seconds: float) -> None:
        """Make the steps under way older."""
        with self.engine.begin() as c:
            c.execute(
                text("UPDATE rollout_step SET started_at = started_at - :d WHERE state = 'running'"),
                {"d": dt.timedelta(seconds=seconds)},
            )


@pytest.fixture
def pool(engine: Engine) -> Iterator[Pool]:
    yield Pool(engine)
