from __future__ import annotations

import datetime as dt
import itertools
import random
import threading
from typing import Any

import pytest
from sqlalchemy import text

from runner.authoring.rules import TRIGGER_RULES, decide
from runner.state import nodes, transitions
from runner.state.transitions import Outcome

from .conftest import DATE, World, task


def test_a_chain_advances_without_a_scheduler(world: World) -> None:
    # Given a run of a → b → c
    world.dag(task("a"), task("b", "a"), task("c", "b"))
    world.node()
    run = world.run()
    assert world.states(run) == {"a": "ready", "b": "waiting", "c": "waiting"}
    # When each claimed task ends, then the next one is ready at once
    for name in "abc":
        (claim,) = world.take()
        assert claim.task_id == name
        assert world.end(claim)
    assert set(world.states(run).values()) == {"success"}
    assert world.run_state(run) == "success"


def test_one_run_per_logical_date(world: World) -> None:
    world.dag(task("a"))
    assert world.run()
    assert world.do(lambda c: transitions.create_run(c, "d", DATE)) is None


def test_only_one_of_many_claims_wins(world: World) -> None:
    # Given one message delivered to eight workers
    world.dag(task("a"))
    world.node()
    world.run()
    (message,) = world.dispatch()
    won = []
    threads = [threading.Thread(target=lambda: won.append(world.claim(message))) for _ in range(8)]
    # When all of them claim at the same time
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    # Then one has it
    assert sum(c is not None for c in won) == 1


def test_a_message_of_an_earlier_attempt_claims_nothing(world: World) -> None:
    world.dag(task("a", retries=1, retry_delay_seconds=0))
    world.node()
    world.run()
    (first,) = world.dispatch()
    claim = world.claim(first)
    assert claim
    world.end(claim, "failed")
    (second,) = world.dispatch()
    assert second.attempt == first.attempt + 1
    assert world.claim(first) is None
    assert world.claim(second)


def test_a_stale_token_ends_nothing(world: World) -> None:
    # Given an attempt whose lease was taken away, and a second attempt that runs
    world.dag(task("a"), task("b", "a"))
    world.node()
    run = world.run()
    (first,) = world.take()
    world.do(lambda c: transitions.interrupt_node(c, "n1", "test"))
    (second,) = world.take()
    # When the first one comes back with a result
    accepted = world.end(first)
    # Then it is refused and changes nothing
    assert not accepted
    assert world.states(run) == {"a": "running", "b": "waiting"}
    assert world.end(second)
    assert world.states(run) == {"a": "success", "b": "ready"}


def test_an_outcome_sent_twice_counts_once(world: World) -> None:
    world.dag(task("a"), task("b"), task("c", "a", "b"))
    world.node()
    run = world.run()
    a, b = world.take()
    assert world.end(a)
    assert not world.end(a)
    assert world.states(run)["c"] == "waiting"
    assert world.end(b)
    assert world.states(run)["c"] == "ready"


def test_a_failure_uses_a_retry_and_an_interruption_does_not(world: World) -> None:
    world.dag(task("a", retries=1, retry_delay_seconds=0))
    world.node()
    run = world.run()
    for _ in range(3):
        (claim,) = world.take()
        assert claim.try_number == 1
        world.end(claim, "interrupted", error="spot")
    (claim,) = world.take()
    assert (claim.try_number, claim.interruptions, claim.attempt) == (1, 3, 4)
    world.end(claim, "failed", error="boom")
    (claim,) = world.take()
    assert claim.try_number == 2
    world.end(claim, "failed", error="boom")
    assert world.states(run) == {"a": "failed"}
    assert world.run_state(run) == "failed"


def test_a_retry_waits_for_its_delay(world: World) -> None:
    world.dag(task("a", retries=1, retry_delay_seconds=3600))
    world.node()
    world.run()
    (claim,) = world.take()
    world.end(claim, "failed")
    assert world.dispatch() == []
    assert world.do(transitions.wake_retries) == 0
    world.do(lambda c: c.execute(text("UPDATE task_instance SET available_at = now()")))
    assert world.do(transitions.wake_retries) == 1
    assert len(world.dispatch()) == 1


def test_retry_false_fails_at_once(world: World) -> None:
    world.dag(task("a", retries=5))
    world.node()
    run = world.run()
    (claim,) = world.take()
    world.end(claim, "failed", retry=False)
    assert world.states(run) == {"a": "failed"}


def test_a_return_value_reaches_the_task_that_takes_it(world: World) -> None:
    world.dag(task("a"), task("b", "a", inputs=("a",)), task("c", "a"))
    world.node()
    world.run()
    (a,) = world.take()
    world.end(a, value='{"rows": [1, 2]}')
    b, c = sorted(world.take(), key=lambda x: x.task_id)
    assert b.inputs == {"a": {"rows": [1, 2]}}
    assert c.inputs == {}


def test_no_more_is_queued_than_idle_slots_can_take(world: World) -> None:
    # Given 100 ready tasks and a node of 4 slots
    world.dag(*[task(f"t{i:03}") for i in range(100)])
    world.node(slots=4)
    world.run()
    # When the scheduler dispatches again and again
    sent = [*world.dispatch(), *world.dispatch()]
    # Then the broker holds four, and one more for each that ends without taking the next
    assert len(sent) == 4
    claim = world.claim(sent[0])
    assert claim
    world.end(claim)
    assert len(world.dispatch()) == 1


def test_a_slot_that_ends_a_task_takes_the_next_one_with_the_same_commit(world: World) -> None:
    # Given more ready tasks than slots, and no scheduler
    world.dag(*[task(f"t{i}") for i in range(5)], task("urgent", "t0", priority=9))
    world.node(slots=1)
    run = world.run()
    (claim,) = world.take()
    for expected in ("urgent", "t1", "t2", "t3", "t4"):
        done = world.finish(claim, slots=1)
        # Then it takes what is first now, also what its own end has made ready
        (claim,) = done.claims
        assert claim.task_id == expected
    assert not world.finish(claim, slots=1).claims
    assert world.run_state(run) == "success"


def test_a_node_that_drains_ends_its_tasks_and_takes_no_more(world: World) -> None:
    world.dag(task("a"), task("b"))
    world.node(slots=1)
    world.run()
    (claim,) = world.take()
    world.do(lambda c: nodes.cordon(c, "n1", reason="roll", by="me", deadline_seconds=60))
    done = world.finish(claim, slots=1)
    assert done.accepted == {claim.token}
    assert not done.claims


def test_a_slot_takes_also_what_somebody_else_was_rung_for(world: World) -> None:
    # Given one task that runs and one whose message is on its way
    world.dag(task("a"), task("b"))
    world.node(slots=2)
    world.run()
    first, second = world.dispatch()
    claim = world.claim(first)
    assert claim
    # When the slot is free before the message arrives, then it takes the task, and the message finds nothing
    (following,) = world.finish(claim, slots=1).claims
    assert (following.task_instance, following.attempt) == (second.task_instance, second.attempt)
    assert world.claim(second) is None


def test_higher_priority_goes_first_and_unknown_queues_wait(world: World) -> None:
    world.dag(task("low"), task("high", priority=5), task("gpu", queue="gpu"))
    world.node(slots=1)
    run = world.run()
    (message,) = world.dispatch()
    assert world.claim(message)
    assert world.states(run) == {"low": "ready", "high": "running", "gpu": "ready"}
    world.do(lambda c: c.execute(text("UPDATE node SET slots = 0")))
    assert world.dispatch() == []


def test_nothing_goes_to_a_queue_without_a_live_node(world: World) -> None:
    world.dag(task("a"))
    world.run()
    assert world.dispatch() == []
    world.node()
    world.do(lambda c: c.execute(text("UPDATE node_heartbeat SET at = now() - interval '1 day'")))
    assert world.dispatch() == []


# --- the gate --------------------------------------------------------------------------------------------------


def test_a_draining_node_claims_nothing(world: World) -> None:
    world.dag(task("a"))
    world.node()
    run = world.run()
    (message,) = world.dispatch()
    assert world.do(lambda c: nodes.cordon(c, "n1", reason="roll", by="me", deadline_seconds=60))
    assert world.claim(message) is None
    # and hands the message back at once
    assert world.do(lambda c: transitions.release(c, message.task_instance, message.attempt))
    assert world.states(run) == {"a": "ready"}


def test_claims_racing_a_cordon_never_both_win(world: World) -> None:
    # Given many queued tasks, a node that claims them in four threads and a cordon in the middle
    world.dag(*[task(f"t{i:03}") for i in range(60)])
    world.node(slots=40)
    world.run()
    messages = world.dispatch()
    late: list[Any] = []
    cordoned = threading.Event()

    def claims(part: list[transitions.Message]) -> None:
        for m in part:
            after = cordoned.is_set()
            if world.claim(m) and after:
                late.append(m)

    threads = [threading.Thread(target=claims, args=(messages[i::4],)) for i in range(4)]
    for t in threads:
        t.start()
    world.do(lambda c: nodes.cordon(c, "n1", reason="roll", by="me", deadline_seconds=60))
    cordoned.set()
    for t in threads:
        t.join()
    # Then no claim that began after the cordon was committed has won
    assert late == []


def test_drained_only_when_no_lease_is_left(world: World) -> None:
    world.dag(task("a"))
    world.node()
    world.run()
    (claim,) = world.take()
    world.do(lambda c: nodes.cordon(c, "n1", reason="roll", by="me", deadline_seconds=60))
    assert not world.do(lambda c: nodes.drained(c, "n1"))
    orders = world.do(lambda c: nodes.heartbeat(c, "n1", [claim.token]))
    assert orders.state == "draining"
    assert orders.held == {claim.token}
    world.end(claim)
    assert world.do(lambda c: nodes.drained(c, "n1"))
    assert world.one("SELECT state FROM node") == "drained"


def test_a_restarted_worker_stays_draining_and_its_old_tasks_are_handed_on(world: World) -> None:
    world.dag(task("a"))
    world.node()
    run = world.run()
    world.take()
    world.do(lambda c: nodes.cordon(c, "n1", reason="roll", by="me", deadline_seconds=60))
    assert world.node(boot="another") == "draining"
    assert world.states(run) == {"a": "ready"}
    assert world.one("SELECT interruptions FROM task_instance") == 1


# --- leases ----------------------------------------------------------------------------------------------------


def test_only_an_unchanged_lease_is_taken_away(world: World) -> None:
    world.dag(task("a"), task("b"))
    world.node()
    world.run()
    a, b = world.take()
    seen = world.do(transitions.leases)
    assert {token for token, _ in seen} == {a.token, b.token}
    # When one of the two renews after it was seen
    world.do(lambda c: nodes.heartbeat(c, "n1", [b.token], lease_seconds=400))
    # Then only the other is interrupted
    assert world.do(lambda c: transitions.interrupt_leases(c, seen)) == 1
    assert world.end(b)
    assert not world.end(a)


def test_a_heartbeat_names_the_leases_that_still_hold(world: World) -> None:
    world.dag(task("a"), task("b"))
    world.node()
    world.run()
    a, b = world.take()
    world.end(a)
    orders = world.do(lambda c: nodes.heartbeat(c, "n1", [a.token, b.token]))
    assert orders.held == {b.token}
    assert world.do(lambda c: nodes.heartbeat(c, "unknown")) is None


# --- trigger rules --------------------------------------------------------------------------------------------


def expected(rule: str, ups: list[str]) -> str:
    decision = decide(
        rule, total=3, success=ups.count("success"), failed=ups.count("failed"), skipped=ups.count("skipped")
    )
    return {"run": "ready", "skip": "skipped", "fail": "upstream_failed", "wait": "waiting"}[decision]


def test_every_trigger_rule_on_every_order_of_three_upstreams(world: World) -> None:
    # Given one DAG that has, for each order of results and each rule, a task below its own three upstreams
    orders = list(itertools.product(("success", "failed", "skipped"), repeat=3))
    tasks = []
    for m, r in itertools.product(range(len(orders)), TRIGGER_RULES):
        ups = [f"m{m}.{r}.{i}" for i in range(3)]
        tasks += [task(u) for u in ups] + [task(f"m{m}.{r}", *ups, trigger_rule=r, queue="later")]
    world.dag(*tasks)
    world.node(slots=1000)
    run = world.run()
    claims = world.take()
    decided: dict[str, str] = {}
    for step in range(3):
        # When the upstreams end one after another
        ended = [c for c in claims if c.task_id.endswith(f".{step}")]
        outcomes = [
            Outcome(c.task_instance, c.token, orders[int(c.task_id[1:].split(".")[0])][step])  # type: ignore[arg-type]
            for c in ended
        ]
        world.do(lambda c, o=outcomes: transitions.finish(c, o).accepted)
        # Then each task is what the rule says of the ends so far, and what was decided once stays
        states = world.states(run)
        for m, r in itertools.product(range(len(orders)), TRIGGER_RULES):
            name = f"m{m}.{r}"
            want = decided.setdefault(name, expected(r, list(orders[m][: step + 1])))
            assert states[name] == want, (r, orders[m][: step + 1])
            if want == "waiting":
                del decided[name]


def test_a_failure_runs_down_the_whole_graph(world: World) -> None:
    world.dag(task("a"), task("b", "a"), task("c", "b"), task("clean", "c", trigger_rule="all_done"))
    world.node()
    run = world.run()
    (a,) = world.take()
    world.end(a, "failed")
    assert world.states(run) == {"a": "failed", "b": "upstream_failed", "c": "upstream_failed", "clean": "ready"}
    (clean,) = world.take()
    world.end(clean)
    assert world.run_state(run) == "success"  # as in the field: the leaves decide


@pytest.mark.parametrize("seed", range(4))
def test_parallel_finishers_lose_no_count(world: World, seed: int) -> None:
    # Given a random layered DAG and four workers that finish in batches at the same time
    rng = random.Random(seed)
    layers = [[f"l{i}t{j}" for j in range(rng.randint(1, 8))] for i in range(5)]
    tasks = [task(t) for t in layers[0]]
    for above, layer in itertools.pairwise(layers):
        tasks += [task(t, *rng.sample(above, rng.randint(1, len(above)))) for t in layer]
    world.dag(*tasks)
    world.node(slots=50)
    run = world.run()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while world.run_state(run) == "running":
                claims = world.take()
                with world.engine.begin() as c:
                    transitions.finish(c, [Outcome(x.task_instance, x.token, "success") for x in claims])
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    # Then everything ran once, without a deadlock
    assert not errors
    assert world.run_state(run) == "success"
    assert world.one("SELECT count(*) FROM event WHERE kind = 'task' AND state = 'running'") == len(tasks)


def test_every_transition_leaves_an_event(world: World) -> None:
    world.dag(task("a"))
    world.node()
    run = world.run()
    (claim,) = world.take()
    world.end(claim)
    rows = world.do(
        lambda c: c.execute(text("SELECT kind, state FROM event WHERE run_id = :r ORDER BY id"), {"r": run}).all()
    )
    assert [tuple(r) for r in rows] == [
        ("run", "running"),
        ("task", "queued"),
        ("task", "running"),
        ("task", "success"),
        ("run", "success"),
    ]


def test_a_run_keeps_the_version_it_started_with(world: World) -> None:
    world.dag(task("a"))
    old = world.run()
    world.dag(task("a"), task("b", "a"), dag_id="other")
    assert world.one("SELECT bundle_version FROM dag_run WHERE id = :r", r=old) == "v-d"
    new = world.run("other", DATE + dt.timedelta(days=1))
    assert world.states(new) == {"a": "ready", "b": "waiting"}
