"""The autoscaler at work: a real database, moto's autoscaling group, workers and the clock played by the test."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from sqlalchemy import Connection, Engine, text

from runner.authoring.spec import DagSpec, TaskSpec
from runner.rollout.cloud import Cloud, group_name
from runner.scheduler.autoscale import BY, Autoscaling, load_of
from runner.settings import Settings
from runner.state import bundles, nodes, queries, rollouts, scaling, transitions
from runner.state.db import connect
from runner.telemetry import metrics

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
GROUP = group_name("test", "worker", "default")
TAGS = {"Scaling": "sluice", "MaxWorkers": "8", "Slots": "4", "Queues": "default night", "CooldownSeconds": "300"}


class Fleet:
    """One pool: `look()` is a second of the autoscaler, `play()` what machines and workers do meanwhile."""

    def __init__(self, engine: Engine, asg: Any) -> None:
        self.engine = engine
        self.asg = asg
        self.now = 1000.0
        self.cloud = Cloud("us-east-1")
        self.duty = Autoscaling(engine, lambda: self.cloud, Settings(env="test"))
        self.leases: list[transitions.Claim] = []
        with engine.begin() as c:
            wide = DagSpec(dag_id="wide", tasks=tuple(TaskSpec(task_id=f"t{i}") for i in range(40)))
            bundles.register_and_activate(c, version="v1", name="b", url="", size=0, specs=[wide], who="test")

    def group(self, name: str = GROUP, tags: dict[str, str] = TAGS, minimum: int = 0, size: int = 0) -> None:
        self.asg.create_auto_scaling_group(
            AutoScalingGroupName=name,
            MinSize=minimum,
            MaxSize=9,
            DesiredCapacity=size,
            AvailabilityZones=["us-east-1a"],
            LaunchTemplate={"LaunchTemplateName": "template"},
            Tags=[{"Key": k, "Value": v, "PropagateAtLaunch": False} for k, v in tags.items()],
        )

    def look(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.duty._groups_at = float("-inf")
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
            self.duty.turn(c)

    def play(self) -> None:
        members = [i.instance_id for i in self.cloud.group(GROUP).instances]
        with self.engine.begin() as c:
            known = {n.node_id: n for n in queries.fleet(c)}
            for i in members:
                if i not in known:
                    queues = ("default", nodes.queue_of(i))
                    nodes.register(c, nodes.NodeInfo(i, "worker", "default", "r1", "boot", 4, queues, instance_id=i))
                nodes.heartbeat(c, i)
                if i in known and known[i].state == "draining":
                    nodes.drained(c, i)
            for i in set(known) - set(members):
                nodes.gone(c, i, cause="terminated")

    def work(self) -> None:
        """The workers take what they can."""
        with self.engine.begin() as c:
            transitions.dispatch(c)
            for n in queries.fleet(c, role="worker"):
                self.leases += transitions.take(c, node_id=n.node_id, queues=["default"], n=4, lease_seconds=600)

    def finish(self) -> None:
        with self.engine.begin() as c:
            transitions.finish(c, [transitions.Outcome(x.task_instance, x.token, "success") for x in self.leases])
        self.leases = []

    def start_tasks(self, minute: int = 0) -> None:
        with self.engine.begin() as c:
            assert transitions.create_run(c, "wide", NOON + dt.timedelta(minutes=minute))

    @property
    def desired(self) -> int:
        return self.cloud.group(GROUP).desired

    def states(self) -> list[str]:
        with self.engine.connect() as c:
            return sorted(n.state for n in queries.fleet(c, role="worker"))

    def events(self) -> list[str]:
        with self.engine.connect() as c:
            return list(c.execute(text("SELECT detail FROM event WHERE kind = 'pool' ORDER BY id")).scalars())


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def fleet(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        template = {"ImageId": "ami-12c6146b"}
        boto3.client("ec2", "us-east-1").create_launch_template(
            LaunchTemplateName="template", LaunchTemplateData=template
        )
        found = Fleet(engine, boto3.client("autoscaling", "us-east-1"))
        monkeypatch.setattr(scaling, "now", lambda connection: found.now)
        yield found


def test_from_nothing_to_all_that_may_be_and_back_to_nothing(fleet: Fleet) -> None:
    # Given an empty pool that may have eight nodes; when 40 tasks are ready
    fleet.group()
    fleet.look()
    assert fleet.desired == 0 and fleet.events() == []
    fleet.start_tasks()
    fleet.look()
    # Then eight are asked for in one look, and the event says why in numbers
    assert fleet.desired == 8
    assert re.fullmatch(
        r"desired capacity 0 → 8: 40 ready, the oldest for \d+\.\d s, 0 queued, 0 running: "
        r"10 nodes of 4 slots, 0 to 8 allowed",
        fleet.events()[0],
    )
    # And while they work nothing changes, also when all is done, before the cool-down is over
    fleet.look()
    fleet.play()
    fleet.work()
    assert len(fleet.leases) == 32
    fleet.look()
    fleet.finish()
    fleet.work()
    assert len(fleet.leases) == 8
    fleet.look(299)
    assert fleet.desired == 8 and len(fleet.events()) == 1
    # When it is over, the idle ones drain, and those that run something stay
    fleet.look(2)
    assert fleet.states() == ["draining"] * 6 + ["ready"] * 2
    with fleet.engine.connect() as c:
        assert {n.state: n.running for n in queries.fleet(c)} == {"draining": 0, "ready": 4}
    fleet.play()
    fleet.look()
    assert fleet.desired == 2
    # And when nothing runs any more, all go
    fleet.finish()
    fleet.look()
    fleet.look(301)
    fleet.play()
    fleet.look()
    fleet.play()
    assert fleet.desired == 0 and fleet.states() == []
    with fleet.engine.connect() as c:
        assert c.execute(text("SELECT count(*) FROM task_instance WHERE interruptions > 0")).scalar() == 0
        said = text("SELECT count(*) FROM event WHERE kind = 'node' AND state = 'draining' AND detail = :why")
        assert c.execute(said, {"why": f"idle, 8 nodes and 2 needed, by {BY}"}).scalar() == 6


def test_the_load_comes_back_while_nodes_drain(fleet: Fleet) -> None:
    fleet.group(size=2)
    fleet.play()
    fleet.look()
    fleet.look(301)
    assert fleet.states() == ["draining", "draining"]
    # When tasks come before they are drained, they are taken back and the rest is asked for
    fleet.start_tasks()
    fleet.look()
    assert fleet.states() == ["ready", "ready"] and fleet.desired == 8
    assert "taken back; desired capacity 2 → 8: 40 ready" in fleet.events()[-1]


def test_what_such_tasks_took_lately_counts(fleet: Fleet) -> None:
    # Given a run of this DAG whose tasks took three seconds
    fleet.group(size=8)
    fleet.play()
    fleet.start_tasks()
    for _ in range(2):
        fleet.work()
        fleet.finish()
    with fleet.engine.begin() as c:
        c.execute(text("UPDATE task_instance SET started_at = ended_at - interval '3 seconds'"))
    fleet.asg.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=0)
    fleet.play()
    # When the next run comes, its 40 tasks are done within a minute by two slots
    fleet.start_tasks(1)
    fleet.look()
    assert fleet.desired == 1 and "3 s each" in fleet.events()[-1]


def test_a_roll_under_way_keeps_its_nodes(fleet: Fleet) -> None:
    fleet.group(size=3)
    fleet.play()
    fleet.look()
    with fleet.engine.begin() as c:
        rollouts.create(
            c, role="worker", pool="default", release="r2", strategy="replace", wish={}, steps=[("tag", {})], who="me"
        )
    fleet.look(301)
    fleet.look(301)
    assert fleet.states() == ["ready"] * 3 and fleet.desired == 3
    # But it grows, as far as the surge's room
    fleet.start_tasks()
    fleet.look()
    assert fleet.desired == 8


def test_a_node_that_has_just_taken_a_task_stays(fleet: Fleet) -> None:
    fleet.group(size=1)
    fleet.play()
    fleet.start_tasks()
    fleet.work()
    node = fleet.cloud.group(GROUP).instances[0].instance_id
    with fleet.engine.begin() as c:
        assert not scaling.drain_idle(c, node, reason="idle", by=BY, deadline_seconds=60)
    fleet.finish()
    with fleet.engine.begin() as c:
        assert scaling.drain_idle(c, node, reason="idle", by=BY, deadline_seconds=60)


def test_an_instance_that_changes_its_release_in_place_is_one_node(fleet: Fleet) -> None:
    # Given an instance whose new service is up while the old one finishes a task
    fleet.group(size=1)
    fleet.play()
    fleet.start_tasks()
    fleet.work()
    (instance,) = (i.instance_id for i in fleet.cloud.group(GROUP).instances)
    with fleet.engine.begin() as c:
        nodes.cordon(c, instance, reason="roll", by="me", deadline_seconds=60)
        info = nodes.NodeInfo("second", "worker", "default", "r2", "boot", 4, ("default",), instance_id=instance)
        nodes.register(c, info)
        rows = queries.fleet(c, role="worker")
    # Then it is one node that serves and that is busy, whichever of the two registered first
    for given in (rows, rows[::-1]):
        load = load_of(fleet.cloud.group(GROUP), [], given, rolling=False)
        assert [(n.state, n.running) for n in load.nodes] == [("serves", 4)]


def test_pools_that_are_not_ours_and_tags_that_make_no_sense(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.group(tags={**TAGS, "Scaling": "target-tracking"}, size=1)
    fleet.group(group_name("test", "worker", "odd"), {"Scaling": "sluice", "MaxWorkers": "8"})
    fleet.group(group_name("test", "worker", "odder"), {**TAGS, "Slots": "many"})
    fleet.start_tasks()
    fleet.look()
    fleet.look()
    assert fleet.desired == 1 and fleet.events() == []
    said = capsys.readouterr().out
    assert said.count("has Scaling = sluice and no tag Slots") == 1
    assert said.count("sluice-test-worker-odder: invalid literal") == 1


def test_trouble_with_the_cloud_ends_a_look_and_no_more(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.group()
    fleet.start_tasks()
    with monkeypatch.context() as m:
        refusal = ClientError({"Error": {"Code": "Throttling", "Message": "Rate exceeded"}}, "SetDesiredCapacity")
        m.setattr(fleet.cloud, "set_desired", lambda *_: (_ for _ in ()).throw(refusal))
        fleet.look()
        assert fleet.desired == 0
    fleet.look()
    assert fleet.desired == 8


def test_a_node_whose_agent_died_while_it_left_is_written_off(fleet: Fleet) -> None:
    fleet.group(size=1)
    fleet.play()
    fleet.look()
    fleet.look(301)
    # Given a drained node that is never heard again
    with fleet.engine.begin() as c:
        c.execute(text("UPDATE node_heartbeat SET at = at - interval '1 hour'"))
    fleet.look()
    assert fleet.desired == 0
    fleet.look()
    assert fleet.states() == []


def test_drained_nodes_are_replaced_where_the_group_may_not_be_smaller(fleet: Fleet) -> None:
    # Given two drained nodes, and a baseline that was raised to two meanwhile, in a group without room for a third
    fleet.group(size=2)
    fleet.play()
    fleet.look()
    fleet.look(301)
    fleet.play()
    assert fleet.states() == ["drained", "drained"]
    fleet.asg.update_auto_scaling_group(AutoScalingGroupName=GROUP, MinSize=2, MaxSize=2)
    drained = {i.instance_id for i in fleet.cloud.group(GROUP).instances}
    # When the autoscaler looks
    fleet.look()
    # Then they are gone, two others have come for them, and the group was never asked for less
    members = {i.instance_id for i in fleet.cloud.group(GROUP).instances if not i.leaving}
    assert len(members) == 2 and not members & drained
    assert fleet.desired == 2
    fleet.play()
    assert fleet.states() == ["ready", "ready"]


def test_the_metrics_and_the_next_leader_know_what_the_last_one_thought(fleet: Fleet) -> None:
    fleet.group()
    fleet.start_tasks()
    fleet.look()
    found = metrics.render(metrics.registry(fleet.engine, release="r1", env="test"), "")[0].decode()
    assert 'sluice_pool_nodes{of="needed",pool="default"} 8.0' in found
    assert 'sluice_pool_nodes{of="maximum",pool="default"} 8.0' in found
    # Given another scheduler that takes over; then the cool-down goes on from where it was
    fleet.duty = Autoscaling(fleet.engine, lambda: fleet.cloud, Settings(env="test"))
    with fleet.engine.connect() as c:
        fleet.duty.begin(c)
    assert fleet.duty._known["default"].history.most == 8
    # And a pool that nobody scales any more is forgotten
    fleet.asg.create_or_update_tags(
        Tags=[
            {
                "ResourceId": GROUP,
                "ResourceType": "auto-scaling-group",
                "Key": "Scaling",
                "Value": "none",
                "PropagateAtLaunch": False,
            }
        ]
    )
    fleet.look()
    with fleet.engine.connect() as c:
        assert scaling.pools(c) == []


def test_one_leads_and_another_takes_over_when_its_connection_dies(engine: Engine, database_url: str) -> None:
    leads: list[str] = []

    class Counting(Autoscaling):
        campaigns = 0

        def _campaign(self) -> None:
            super()._campaign()
            self.campaigns += 1

        def begin(self, connection: Connection) -> None:
            leads.append(connection.execute(text("SHOW application_name")).scalar_one())

        def look(self, connection: Connection) -> None:
            connection.execute(text("SELECT 1"))

    engines = [connect(database_url, application_name=name) for name in ("s1", "s2")]
    duties = [Counting(e, lambda: Cloud("us-east-1"), Settings(env="test")) for e in engines]
    duties[0].start()
    eventually(lambda: leads == ["s1"])
    duties[1].start()
    # While the first leads, the second campaigns in vain
    eventually(lambda: duties[1].campaigns >= 2)
    assert leads == ["s1"]
    with engine.begin() as c:
        c.execute(
            text("""SELECT pg_terminate_backend(l.pid) FROM pg_locks l WHERE locktype = 'advisory'
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())""")
        )
    eventually(lambda: len(leads) == 2)
    for duty in duties:
        duty.stop()
    eventually(lambda: not any(duty.is_alive() for duty in duties))
    # Then the lock is free again
    with engine.connect() as c:
        eventually(lambda: scaling.lead(c, "autoscale"))
        c.invalidate()
    for e in engines:
        e.dispose()
