from __future__ import annotations

import datetime as dt
import os
import signal
import time

import psutil
import pytest

from runner.scheduler.dispatch import Resender
from runner.state import nodes, rollouts, transitions
from runner.storage import Storage
from runner.storage.logs import read_log
from runner.worker.drain import IDLE_LOOK_SECONDS, PROOF_SECONDS

from .conftest import Fleet

PIPELINE = """
    import json, os, subprocess, sys, time
    from datetime import timedelta
    from runner.authoring import dag, task, get_current_context

    def write(name, **values):
        fd = os.open(os.path.join(os.environ["OUT"], name), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, (json.dumps({"pid": os.getpid(), **values}) + "\\n").encode())
        os.close(fd)

    @task
    def first():
        print("hello from first")
        return {"n": 20}

    @task
    def double(x):
        return {"n": x["n"] * 2}

    @task
    def last(x):
        write("last", n=x["n"], node=get_current_context().node)

    @dag
    def chain():
        last(double(double(first())))

    @task
    def sleep(seconds=30.0):
        write("start", attempt=get_current_context().attempt, t=time.monotonic())
        print("sleeping", flush=True)
        subprocess.Popen(["sleep", "300"]) if os.environ.get("GRANDCHILD") else None
        time.sleep(seconds)
        write("end", attempt=get_current_context().attempt)

    @dag
    def long():
        sleep()

    @dag
    def short():
        sleep(2.0)

    @task(retries=1, retry_delay=timedelta(0))
    def fails():
        print("about to fail", file=sys.stderr)
        raise ValueError("no such customer")

    @dag
    def failing():
        fails()

    @task(timeout=timedelta(seconds=1))
    def slow():
        time.sleep(60)

    @dag
    def timeout():
        slow()

    @task
    def bad_value():
        return object()

    @dag
    def bad():
        bad_value()

    @task
    def small(i):
        write("small", i=i)

    @dag
    def wide():
        for i in range(40):
            small(i)
"""


@pytest.fixture
def busy(fleet: Fleet) -> Fleet:
    """A fleet whose node n1 runs `long`."""
    fleet.push(PIPELINE)
    fleet.worker()
    fleet.ready()
    return fleet


def started(fleet: Fleet, times: int = 1) -> list[dict[str, int]]:
    return fleet.wait(lambda: fleet.out("start") if len(fleet.out("start")) >= times else None)  # type: ignore[no-any-return]


def test_a_chain_runs_while_no_scheduler_is_alive(busy: Fleet) -> None:
    # Given a run whose first task was dispatched, and nobody but a worker
    run = busy.run("chain")
    # When it goes on, then the worker itself dispatches each next task, and values travel along
    busy.wait(lambda: busy.state(run) == "success")
    (line,) = busy.out("last")
    assert (line["n"], line["node"]) == (80, "n1")


def test_tasks_of_one_version_share_warm_processes(busy: Fleet) -> None:
    run = busy.run("wide")
    busy.wait(lambda: busy.state(run) == "success")
    lines = busy.out("small")
    assert sorted(x["i"] for x in lines) == list(range(40))
    assert len({x["pid"] for x in lines}) <= 8


def test_output_can_be_read_while_the_task_runs(busy: Fleet) -> None:
    run = busy.run("long")
    started(busy)
    storage = Storage.open(busy.environment["SLUICE_STORAGE_URL"])
    busy.wait(lambda: "sleeping" in read_log(storage, f"logs/long/{run}/sleep/1")[0], 5)
    assert busy.task(run, "sleep") == "running"


def test_a_failure_is_retried_and_its_traceback_kept(busy: Fleet) -> None:
    run = busy.run("failing")
    busy.wait(lambda: busy.state(run) == "failed", dispatching=True)
    assert busy.task(run, "fails", "error") == "ValueError: no such customer"
    assert busy.task(run, "fails", "tries") == 2
    storage = Storage.open(busy.environment["SLUICE_STORAGE_URL"])
    log = busy.wait(lambda: read_log(storage, f"logs/failing/{run}/fails/2")[0])
    assert "about to fail" in log
    assert "ValueError: no such customer" in log


def test_a_task_that_exceeds_its_timeout_is_stopped(busy: Fleet) -> None:
    run = busy.run("timeout")
    busy.wait(lambda: busy.state(run) == "failed")
    assert "timeout of 1 s" in busy.task(run, "slow", "error")


def test_a_value_that_is_no_json_fails_the_task_with_a_clear_line(busy: Fleet) -> None:
    run = busy.run("bad")
    busy.wait(lambda: busy.state(run) == "failed")
    assert "bad_value" in busy.task(run, "bad_value", "error")


def test_term_lets_the_running_task_finish(busy: Fleet) -> None:
    run = busy.run("short")
    started(busy)
    busy.processes[0].terminate()
    assert busy.processes[0].wait(15) == 0
    assert busy.state(run) == "success"


def test_children_never_survive_a_killed_worker(fleet: Fleet) -> None:
    # Given a task that has started a process of its own
    fleet.environment["GRANDCHILD"] = "1"
    fleet.push(PIPELINE)
    worker = fleet.worker()
    fleet.ready()
    fleet.run("long")
    (line,) = started(fleet)
    child = psutil.Process(line["pid"])
    fleet.wait(child.children)
    family = [child, *child.children()]
    # When the worker is killed
    worker.kill()
    # Then all of them are gone, by the kernel's hand
    _, alive = psutil.wait_procs(family, 5)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_a_restarted_worker_hands_on_what_the_dead_one_ran(busy: Fleet) -> None:
    run = busy.run("long")
    started(busy)
    busy.processes[0].kill()
    busy.worker()
    busy.wait(lambda: busy.task(run, "sleep", "interruptions") == 1)
    second = busy.wait(lambda: busy.out("start")[1:], dispatching=True)
    assert second[0]["attempt"] == 2
    assert busy.task(run, "sleep", "tries") == 0


def test_a_killed_child_uses_no_retry(busy: Fleet) -> None:
    run = busy.run("long")
    (line,) = started(busy)
    os.kill(line["pid"], signal.SIGKILL)
    busy.wait(lambda: busy.out("start")[1:], dispatching=True)
    assert busy.task(run, "sleep", "interruptions") == 1
    assert busy.task(run, "sleep", "tries") == 0


def test_a_frozen_worker_cannot_keep_a_task_beyond_its_lease(busy: Fleet) -> None:
    # Given a running task with a lease of 3 s
    busy.run("long")
    (line,) = started(busy)
    # When the worker is stopped, so that it can neither renew nor kill anything
    stopped = time.monotonic()
    busy.processes[0].send_signal(signal.SIGSTOP)
    # Then the task is ended by the kernel before its lease can be over, and is not ended early either
    child = psutil.Process(line["pid"])
    busy.wait(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 5)
    assert 2.0 < time.monotonic() - stopped < 3.2


def test_a_task_longer_than_its_lease_is_kept_alive(busy: Fleet) -> None:
    busy.push(PIPELINE.replace("sleep(2.0)", "sleep(5.0)"))
    run = busy.run("short")
    busy.wait(lambda: busy.state(run) == "success")
    assert busy.task(run, "sleep", "attempt") == 1


def test_a_lease_that_was_taken_away_stops_the_task(busy: Fleet) -> None:
    run = busy.run("long")
    (line,) = started(busy)
    child = psutil.Process(line["pid"])
    with busy.engine.begin() as c:
        from runner.state import transitions

        transitions.interrupt_node(c, "n1", "test")
    busy.wait(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 3)
    assert busy.task(run, "sleep") == "ready"


def test_a_cordoned_worker_finishes_and_is_drained(busy: Fleet) -> None:
    # Given a running task and many that wait
    short = busy.run("short")
    started(busy)
    # When the node is cordoned
    with busy.engine.begin() as c:
        assert nodes.cordon(c, "n1", reason="roll", by="test", deadline_seconds=60)
    wide = busy.run("wide")
    # Then what runs is finished, nothing new is taken, and the node says that it is drained
    busy.wait(lambda: busy.one("SELECT state FROM node") == "drained")
    assert busy.state(short) == "success"
    assert busy.out("small") == []
    # and another node takes what waited
    busy.worker("n2")
    busy.ready("n2")
    busy.wait(lambda: busy.state(wide) == "success", dispatching=True)
    assert busy.processes[0].poll() is None


def test_an_idle_worker_is_drained_soon_after_its_heartbeat(fleet: Fleet) -> None:
    # Given an idle worker with the ordinary heartbeat of 2 s
    fleet.worker(heartbeat_seconds="2", lease_seconds="30")
    fleet.ready()
    # When it is cordoned
    cordoned = time.monotonic()
    with fleet.engine.begin() as c:
        assert nodes.cordon(c, "n1", reason="roll", by="test", deadline_seconds=60)
    # Then it takes one heartbeat to know, and two looks to be sure
    fleet.wait(lambda: fleet.one("SELECT state FROM node") == "drained")
    assert 2 * IDLE_LOOK_SECONDS < time.monotonic() - cordoned < 2 + 2 * IDLE_LOOK_SECONDS + 1


def test_a_busy_worker_is_drained_soon_after_its_last_task(fleet: Fleet) -> None:
    fleet.push(PIPELINE)
    fleet.worker(heartbeat_seconds="2", lease_seconds="30")
    fleet.ready()
    run = fleet.run("short")
    started(fleet)
    with fleet.engine.begin() as c:
        nodes.cordon(c, "n1", reason="roll", by="test", deadline_seconds=60)
    fleet.wait(lambda: fleet.one("SELECT state FROM node") == "drained")
    assert fleet.task(run, "sleep") == "success"
    # and no heartbeat is waited for after that: what it took counts from the task's end, or from knowing of the drain
    took = fleet.one("""
        SELECT extract(epoch FROM n.changed_at - greatest(t.ended_at, e.at + interval '2 seconds'))
        FROM node n, task_instance t, event e WHERE e.kind = 'node' AND e.state = 'draining'""")
    assert took < 2 * IDLE_LOOK_SECONDS + 1


def test_a_drain_that_is_called_off_goes_on_working(busy: Fleet) -> None:
    busy.run("short")
    started(busy)
    with busy.engine.begin() as c:
        nodes.cordon(c, "n1", reason="test", by="test", deadline_seconds=60)
    time.sleep(0.8)
    with busy.engine.begin() as c:
        assert nodes.uncordon(c, "n1", by="test")
    run = busy.run("chain")
    busy.wait(lambda: busy.state(run) == "success")


def test_a_duplicate_message_finds_nothing(busy: Fleet) -> None:
    run = busy.run("chain")
    busy.wait(lambda: busy.state(run) == "success")
    from runner.state.transitions import Message

    again = Message(busy.task(run, "last", "id"), 1, "default")
    busy.doorbell.ring([again, again])
    time.sleep(0.5)
    assert len(busy.out("last")) == 1


def test_an_emptied_broker_loses_nothing(busy: Fleet) -> None:
    import redis

    # Given more queued tasks than slots
    run = busy.run("wide")
    # When everything in the broker is gone
    client = redis.Redis.from_url(busy.environment["SLUICE_BROKER_URL"])
    client.flushall()
    client.close()
    # Then ringing again (the scheduler's duty) is enough
    resender = Resender(busy.engine, busy.doorbell)

    def resend() -> bool:
        resender.resend()
        return busy.state(run) == "success"

    busy.wait(resend, dispatching=True)
    assert sorted(x["i"] for x in busy.out("small")) == list(range(40))


def test_a_draining_worker_hands_messages_back_without_fetching_them_again_and_again(busy: Fleet) -> None:
    # Given a worker whose heartbeat is slow to bring orders, and another one
    busy.processes[0].terminate()
    busy.processes[0].wait(15)
    busy.worker(heartbeat_seconds="3", lease_seconds="30")
    busy.ready()
    busy.wait(lambda: busy.one("SELECT count(*) FROM node_heartbeat WHERE at > now() - interval '1 second'"))
    # When messages reach it that were queued before it was told to drain, and before it knows
    with busy.engine.begin() as c:
        run = transitions.create_run(c, "wide", dt.datetime.now(dt.UTC))
        messages = transitions.dispatch(c)
        nodes.cordon(c, "n1", reason="test", by="test", deadline_seconds=60)
    assert run and messages
    busy.doorbell.ring(messages)
    # Then a refusal tells the worker that it drains, long before its heartbeat does
    busy.wait(lambda: busy.one("SELECT state FROM node WHERE node_id = 'n1'") == "drained")
    after_refusal = busy.one("""
        SELECT extract(epoch FROM (SELECT at FROM event WHERE kind = 'node' AND state = 'drained') - min(at))
        FROM event WHERE detail LIKE 'refused by a node%'""")
    assert after_refusal < 2 * IDLE_LOOK_SECONDS + 1.5
    # and another worker does the work; each task was refused a few times at most, and none was lost
    busy.worker("n2")
    busy.ready("n2")
    busy.wait(lambda: busy.state(run) == "success", dispatching=True)
    assert busy.one("SELECT max(attempt) FROM task_instance WHERE run_id = :r", r=run) <= 4
    assert sorted(x["i"] for x in busy.out("small")) == list(range(40))


def test_a_worker_that_a_roll_has_brought_takes_nothing_before_it_was_tried(fleet: Fleet) -> None:
    # Given a roll under way, many tasks that wait, and the first worker of the new release
    fleet.push(PIPELINE)
    with fleet.engine.begin() as c:
        steps = [("heartbeat", {"batch": 1})]
        rollouts.create(
            c, role="worker", pool="default", release="new", strategy="replace", wish={}, steps=steps, who="test"
        )
    wide = fleet.run("wide")
    fleet.worker(release="new")
    fleet.ready()
    # Then it takes none of them
    end = time.monotonic() + 2
    while time.monotonic() < end:
        fleet.dispatch()
        time.sleep(0.1)
    assert fleet.out("small") == []
    # But what is meant for this very node, also if it fails; and when something has succeeded, all the others at once
    failing = fleet.run("failing", queue=nodes.queue_of("n1"))
    fleet.wait(lambda: fleet.state(failing) == "failed", dispatching=True)
    assert fleet.out("small") == []
    beat = fleet.run("chain", queue=nodes.queue_of("n1"))
    fleet.wait(lambda: fleet.state(beat) == "success", dispatching=True)
    fleet.wait(lambda: fleet.state(wide) == "success", seconds=PROOF_SECONDS - 5, dispatching=True)


def test_a_worker_that_nobody_tries_serves_all_the_same(fleet: Fleet) -> None:
    fleet.push(PIPELINE)
    with fleet.engine.begin() as c:
        rollouts.create(
            c, role="worker", pool="default", release="new", strategy="replace", wish={}, steps=[], who="test"
        )
    wide = fleet.run("wide")
    fleet.worker(release="new")
    fleet.ready()
    fleet.wait(lambda: fleet.state(wide) == "success", seconds=PROOF_SECONDS + 15, dispatching=True)
