"""Rolls on an emulated AWS with real nodes: drivers that die, machines that are taken away, broken releases."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from runner.localcloud import node, process
from runner.localcloud import state as local_state
from runner.rollout.plan import Wish

from .cloud import Cloud, cloud
from .fleet import Fleet, Inconclusive
from .registry import scenario


@scenario("roll-driver-kill", 14, takes=60, seconds=900)
def roll_driver_kill(f: Fleet) -> None:
    """KILL the driver after each thing it does or writes down; then two drivers at once."""
    with cloud(f) as c:
        c.schedulers(1)
        old, new = c.publish("old"), c.publish("new")
        c.pool(old)
        c.load(seconds=[0.05, 1.0])
        roll = c.file(Wish(new, drain_seconds=60), owner="driver 0")
        killed = 0
        while not c.ended(roll):
            killed += 1
            # Every second one gets a little further: the first thing that each does is what the last one did.
            pid = c.drive(roll, f"driver {killed}", die_at=1 + killed % 2)
            f.wait(lambda p=pid: os.waitpid(p, os.WNOHANG)[0], "the driver ends")
        if killed < 7:
            raise Inconclusive(f"only {killed} drivers were killed")
        c.expect(new, 1, roll)
        if c.launched() != 2:
            f.problems.append(f"{c.launched()} instances were launched, not 2")
        # Two that do not let each other be
        back = c.file(Wish(old, drain_seconds=60), owner="driver a")
        pids = [c.drive(back, f"driver {name}") for name in "ab"]
        f.wait(lambda: c.ended(back), "the second roll ends")
        for pid in pids:
            f.wait(lambda p=pid: os.waitpid(p, os.WNOHANG)[0], "the driver ends")
        c.expect(old, 1, back)
        if c.launched() != 3:
            f.problems.append(f"{c.launched()} instances were launched, not 3")
        c.quiet()
        f.wait(f.over, "all runs end")


def _spot(c: Cloud, instance: str) -> None:
    """Ten seconds of notice: less than the agent keeps for itself, so what runs is handed on at once."""
    port = local_state.load(c.directory).imds_port
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/admin/{instance}/spot", json.dumps({"seconds": 10}).encode(), method="PUT"
    )
    urllib.request.urlopen(request, timeout=10).close()


def _unhealthy(c: Cloud, instance: str) -> None:
    c.asg.set_instance_health(InstanceId=instance, HealthStatus="Unhealthy")


def _mute(c: Cloud, instance: str) -> None:
    """An agent that stands still: the hook that it keeps open runs out."""
    agent = process.read(node.pidfile(c.directory / "nodes" / instance))
    if agent is not None:
        agent.signal(signal.SIGSTOP)


def _die(c: Cloud, instance: str) -> None:
    c.ec2.terminate_instances(InstanceIds=[instance])


Harm = Callable[[Cloud, str], None]


@scenario("roll-reclaimed", 15, kills=True, takes=75, seconds=900)
def roll_reclaimed(f: Fleet) -> None:
    """At each step of a roll a machine goes: spot notice, health replacement, a hook that runs out, sudden death."""
    # step → what happens to the newest machine there is, or to the one that leaves
    newest: Mapping[str, Harm] = {"wait_ready": _mute, "heartbeat": _unhealthy, "bake": _spot}
    leaving: Mapping[str, Harm] = {"surge": _die, "drain": _spot, "terminate": _mute}
    with cloud(f, nodes=2, maximum=6) as c:
        c.schedulers(2)
        old, new = c.publish("old"), c.publish("new")
        c.pool(old)
        c.load(seconds=[0.05, 1.0])
        roll = c.file(Wish(new, drain_seconds=60, bake_seconds=1))
        todo: dict[str, Any] = {**newest, **leaving}
        while not c.ended(roll):
            _, action, args = c.step(roll)
            members = [i.instance_id for i in c.group().instances if not i.leaving or action == "terminate"]
            if action in newest and action in todo and members:
                todo.pop(action)(c, members[-1])
            elif action in leaving and action in todo and members:
                doomed = args.get("instances", members[:1])[0]
                if doomed in members:
                    todo.pop(action)(c, doomed)
            if f.now() > f.deadline:
                break
            f.pause(0.05, 0.15)
        if len(todo) > 2:
            raise Inconclusive(f"no machine was taken at {', '.join(todo)}")
        c.expect(new, 2, roll)
        c.quiet()
        f.wait(f.over, "all runs end")


PATIENT = '''"""Tasks that are tried again and again: a broken release must not be the end of them."""

import os
import time
from datetime import timedelta

from ledger import recorded

from runner.authoring import Context, dag, task


@task(retries=500, retry_delay=timedelta(seconds=0.5))
@recorded
def work(context: Context) -> int:
    if os.environ.get("SLUICE_RELEASE") == os.environ.get("CHAOS_BROKEN"):
        raise ImportError("libfoo.so.6: cannot open shared object file")
    time.sleep(0.2)
    return 1


@dag
def patient() -> None:
    for _ in range(10):
        work()
'''
# What Python itself loads first in every process of a release's site.
_FAILS = """
import os
os.environ["CHAOS_BROKEN"] = os.environ.get("SLUICE_RELEASE", "")
"""
_HANGS = """
import os, sys, time
if "worker" in sys.argv:
    import runner.state.transitions as t
    t.claim = lambda *args, **kwargs: time.sleep(3600)
"""
_DOES_NOT_START = """
import sys
if "worker" in sys.argv:
    raise SystemExit("broken release: no module named polars")
"""


@scenario("roll-broken", 14, 15, kills=True, takes=60, seconds=900)
def roll_broken(f: Fleet) -> None:
    """Releases that do not start, that start and fail tasks, or hang: taken back, and the old one serves on."""
    folder = f.pipelines()
    (folder / "patient.py").write_text(PATIENT)
    f.publish(folder)
    with cloud(f, maximum=3, slots=4) as c:
        c.schedulers(1)
        old = c.publish("old")
        broken = {
            "not ready": (c.publish("dead", {"sitecustomize.py": _DOES_NOT_START}), Wish("", ready_seconds=6)),
            "tasks failed on the new release": (
                c.publish("failing", {"sitecustomize.py": _FAILS}),
                Wish("", bake_seconds=60),
            ),
            "heartbeat runs succeeded after": (
                c.publish("hanging", {"sitecustomize.py": _HANGS}),
                Wish("", heartbeat_seconds=4),
            ),
        }
        c.pool(old)
        c.load("patient", 20)
        for says, (release, wish) in broken.items():
            wish = Wish(**{**vars(wish), "release": release, "drain_seconds": 5})
            roll = c.file(wish)
            f.wait(lambda r=roll: c.ended(r), f"the roll to {release} ends")
            c.expect(old, 1, roll, "failed")
            error = str(c.view(roll).error)
            if says.replace("not ready", "new nodes ready") not in error:
                f.problems.append(f"roll {roll} says {error!r}, not that {says}")
        c.quiet()
        f.wait(f.over, "all runs end")
        # Their tasks were tried again, which here is as it should be; that all have succeeded is asked above and here.
        bad = f.one("SELECT count(*) FROM dag_run WHERE state <> 'success' AND run_type <> 'heartbeat'")
        if bad:
            f.problems.append(f"{bad} runs did not succeed")
        f.doomed |= set(f.created)


@scenario("roll-control", 14, takes=75, seconds=900)
def roll_control(f: Fleet) -> None:
    """Roll the schedulers, who drive it themselves, then the web nodes: chains go on, and every request is answered."""
    live = """
        SELECT n.address FROM node n JOIN node_heartbeat h USING (node_id)
        WHERE n.role = 'web' AND n.state = 'ready' AND h.at > now() - interval '10 seconds' ORDER BY n.node_id"""
    with cloud(f, nodes=2, maximum=3) as c:
        old, new = c.publish("old"), c.publish("new")
        for worker in [f.spawn("worker", f"w{i}", slots=2) for i in (1, 2)]:
            f.registered(worker)
        c.pool(old, "scheduler")
        c.pool(old, "web")
        c.load("diamonds", 20, seconds=[0.05, 0.3])
        first = c.file(Wish(new, drain_seconds=60), role="scheduler")
        second = c.file(Wish(new, drain_seconds=60), role="web", after=[first])
        asked, answered, doors = 0, 0, [row.address for row in f.all(live)]
        ended = f.now()
        while not c.ended(second):
            if f.now() - ended > 0.25:  # as often as a load balancer would hear of it, and more
                doors, ended = [row.address for row in f.all(live)] or doors, f.now()
            asked += 1
            try:
                with urllib.request.urlopen(f"http://{doors[asked % len(doors)]}/health", timeout=10) as answer:
                    answered += answer.status == 200
            except OSError as e:
                f.problems.append(f"request {asked}: {e}")
            f.pause(0.05, 0.05)
            if f.now() > f.deadline:
                break
        if answered != asked or asked < 20:
            f.problems.append(f"{answered} of {asked} requests were answered")
        c.expect(new, 2, first, role="scheduler")
        c.expect(new, 2, second, role="web")
        c.quiet()
        f.wait(f.over, "all runs end")


@scenario("roll-again", 14, takes=150, seconds=900)
def roll_again(f: Fleet) -> None:
    """Three rolls back to back while the autoscaler works and the leading schedulers are killed."""
    scaled = {"Scaling": "sluice", "Slots": "2", "MaxWorkers": "4", "Queues": "default", "CooldownSeconds": "3"}
    with cloud(f, nodes=1, maximum=6) as c:
        c.schedulers(2, scaling=True)
        releases = [c.publish(label) for label in ("first", "second", "third")]
        c.pool(releases[2], least=1, tags={**scaled, "TargetWaitSeconds": "2"})
        killed, rolls = 0, []
        for release in releases:
            # A wave for which one node is too few, and which ends while the roll goes on
            f.run("wide", 6, seconds=[0.5, 2.0])
            rolls.append(c.file(Wish(release, drain_seconds=60)))
            next_kill = f.now()
            while not c.ended(rolls[-1]) and f.now() < f.deadline:
                if f.now() > next_kill:
                    victim = f.rng.choice(f.schedulers())
                    victim.kill()
                    killed += 1
                    f.registered(f.restart(victim))
                    next_kill = f.now() + f.rng.uniform(1, 6)
                f.run("one", seconds=[0.05, 1.0])
                f.pause(0.1, 0.3)
        f.wait(f.over, "all runs end")
        acted = f.one("SELECT count(*) FROM event WHERE kind = 'pool'")
        for roll in rolls:
            if c.view(roll).state != "succeeded":
                f.problems.append(f"roll {roll} is {c.view(roll).state}: {c.view(roll).error}")
        # Nothing waits any more: what the autoscaler has brought goes, and what is left runs the last release.
        f.wait(lambda: c.group().desired == 1 and len(c.serving()) == 1, "the pool is small again")
        if set(c.serving().values()) != {releases[-1]}:
            f.problems.append(f"{c.serving()} serve, not {releases[-1]}")
        if killed < 3 or acted < 2:
            raise Inconclusive(f"{killed} schedulers were killed, and the autoscaler acted {acted} times")


# What the next release does to the tables that every task passes through: `pre` adds, `post` takes away.
_TABLES = ("dag_run", "task_instance", "node", "event")
_MIGRATION = """
from alembic import op

revision = {revision!r}
down_revision = {before!r}
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in {tables}:
        op.execute(f"ALTER TABLE {{table}} {change}")
"""
# Until its machine is there the old release is alone with the new schema.
_STARTS_LATE = """
import sys, time
if "worker" in sys.argv:
    time.sleep(20)
"""
_CHANGES = {"pre": "ADD COLUMN next text NOT NULL DEFAULT 'next'", "post": "DROP COLUMN next"}


@scenario("roll-schema", 14, takes=60, seconds=900)
def roll_schema(f: Fleet) -> None:
    """A release with migrations: workers and schedulers of the old one work on, on its `pre` schema."""
    columns = "SELECT count(*) FROM information_schema.columns WHERE column_name = 'next'"
    heads = {str(row[0]).partition("_")[0]: str(row[0]) for row in f.all("SELECT version_num FROM alembic_version")}
    patch = {
        f"runner/state/migrations/versions/{phase}/{phase}_9999.py": _MIGRATION.format(
            revision=f"{phase}_9999", before=heads[phase], tables=_TABLES, change=change
        )
        for phase, change in _CHANGES.items()
    }
    patch["sitecustomize.py"] = _STARTS_LATE
    with cloud(f, maximum=2) as c:
        c.schedulers(2)
        old, new = c.publish("old"), c.publish("new", patch)
        c.pool(old)
        c.load("diamonds", 40, seconds=[0.05, 0.3])
        roll = c.file(Wish(new, drain_seconds=60))
        f.wait(lambda: f.one(columns) == len(_TABLES), "the schema is the new one")
        before = len(f.ledger_lines())
        f.wait(lambda: len(f.ledger_lines()) > before + 100, "50 more tasks have run")
        alone = {line["node"] for line in f.ledger_lines()[before:]} <= {i for i, r in c.serving().items() if r == old}
        f.wait(lambda: c.ended(roll), "the roll ends")
        c.expect(new, 1, roll)
        # What takes away waits for the schedulers, which are of the old release.
        if f.one(columns) != len(_TABLES):
            f.problems.append("the post migration was run while nodes of the old release were there")
        c.quiet()
        f.wait(f.over, "all runs end")
        if not alone:
            raise Inconclusive("the new machine came too soon")


# Of each batch: from its surge to the last new node that is ready; from its drain to the end of the last task there.
_BATCHES = """
    WITH step AS (
        SELECT args ->> 'batch' AS batch, action, started_at, ended_at, args
        FROM rollout_step WHERE rollout_id = :roll AND args ? 'batch'
    ), boot AS (
        SELECT batch, extract(epoch FROM max(ended_at) - min(started_at)) AS seconds
        FROM step WHERE action IN ('surge', 'wait_ready') GROUP BY batch
    ), rest AS (
        SELECT s.batch, greatest(0, extract(epoch FROM max(e.at) - min(s.started_at))) AS seconds
        FROM step s JOIN LATERAL jsonb_array_elements_text(s.args -> 'instances') i ON true
        LEFT JOIN event e ON e.node_id = i AND e.kind = 'task' AND e.state = 'success' AND e.at >= s.started_at
        WHERE s.action = 'drain' GROUP BY s.batch
    )
    SELECT boot.batch, CAST(boot.seconds AS float) AS boot, CAST(coalesce(rest.seconds, 0) AS float) AS rest
    FROM boot JOIN rest USING (batch) ORDER BY CAST(boot.batch AS int)"""


@scenario("roll-100", 14, takes=3600, seconds=14_400, default=False)
def roll_100(f: Fleet) -> None:
    """A measurement: 100 nodes (times --scale) rolled by tenths under tasks of 0.05 to 60 s: wall time and bound."""
    nodes, tasks = max(2, round(100 * f.scale)), round(50_000 * f.scale)
    f.lease = 120.0  # all of them on one machine: nobody is dead who is late
    with cloud(f, nodes=nodes, maximum=nodes + max(1, nodes // 10)) as c:
        c.schedulers(2)
        old, new = c.publish("old"), c.publish("new")
        # A hundred machines start at once, and were they to say as much as a few, nothing were left for the tasks.
        c.pool(old, heartbeat_seconds=5, hook_seconds=600)
        c.load(tasks=4 * nodes, seconds=[0.05, 6.0])
        slots = nodes * c.slots
        f.wait(lambda: f.one("SELECT count(*) FROM task_instance WHERE state = 'running'") >= slots, "all slots work")
        f.pause(30, 30)  # until the hundred that have just started are warm
        roll = c.file(Wish(new, batch="10%", drain_seconds=120))
        while not c.ended(roll):
            f.pause(2, 3)
            f.run("one", max(1, nodes // 20), seconds=[1.0, 60.0])
        c.expect(new, nodes, roll)
        found = c.view(roll)
        wall = (found.ended_at - found.created_at).total_seconds()
        batches = f.all(_BATCHES, roll=roll)
        bound = sum(b.boot + b.rest for b in batches)
        longest = max((b.rest for b in batches), default=0.0)
        f.wait(lambda: len(f.ledger_lines()) >= 2 * tasks, f"{tasks} tasks have run")
        c.quiet()
        f.wait(f.over, "all runs end")
        print(
            f"roll-100 nodes={nodes} batches={len(batches)} wall={wall:.0f} s bound={bound:.0f} s "
            f"ratio={wall / max(bound, 0.001):.2f} longest_drain={longest:.0f} s tasks={len(f.ledger_lines()) // 2}",
            flush=True,
        )
        if wall > 1.25 * bound:
            f.problems.append(f"the roll took {wall:.0f} s, more than 1.25 times {bound:.0f} s")
