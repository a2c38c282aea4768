"""The engine under every order of events that a seed makes up, against a model that knows of none.

A profile for CI, always the same; SLUICE_INTERLEAVINGS=2000 looks at so many new ones.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine

from runner.authoring.rules import TRIGGER_RULES
from runner.authoring.spec import DagSpec, TaskSpec
from runner.settings import RefusedError, UsageError
from runner.state import nodes, transitions
from runner.state.transitions import Outcome

from .conftest import task
from .oracle import Behaviour, all_runs
from .simulation import Simulation

WAIT_FOR_ALL = ("all_success", "none_failed", "all_done", "none_skipped", "none_failed_min_one_success")
LONG = int(os.environ.get("SLUICE_INTERLEAVINGS", "0"))
profile = settings(
    max_examples=LONG or 10,
    derandomize=not LONG,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


class Scenario(NamedTuple):
    dags: list[DagSpec]
    behaviour: dict[str, Behaviour]
    pools: dict[str, int]
    runs: int
    seed: int
    steps: int


@st.composite
def scenarios(draw: Any) -> Scenario:
    dags, behaviour = [], {}
    for dag_id in ("d0", "d1")[: draw(st.integers(1, 2))]:
        spec, branches = draw(dag_specs(dag_id))
        dags.append(spec)
        behaviour[dag_id] = Behaviour(draw(st.integers(0, 10**6)), branches)
    pools = {"p": draw(st.integers(1, 3))} if draw(st.booleans()) else {}
    return Scenario(
        dags, behaviour, pools, draw(st.integers(1, 3)), draw(st.integers(0, 10**9)), draw(st.integers(30, 200))
    )


@st.composite
def dag_specs(draw: Any, dag_id: str) -> tuple[DagSpec, dict[str, frozenset[str]]]:
    tasks: list[TaskSpec] = []
    n = draw(st.integers(3, 7))
    for i in range(n):
        names = [t.task_id for t in tasks]
        upstream = draw(st.lists(st.sampled_from(names), max_size=3, unique=True)) if names else []
        tasks.append(draw(task_specs(f"t{i}", upstream, tasks)))
    branches: dict[str, frozenset[str]] = {}
    for t in tasks:
        if t.kind == "task" and not t.teardown and draw(st.integers(0, 5)) == 0:
            after = [x.task_id for x in tasks if t.task_id in x.upstream and not x.teardown]
            left_out = draw(st.lists(st.sampled_from(after), unique=True)) if after else []
            if draw(st.integers(0, 3)) == 0:  # a short circuit
                found = {t.task_id}
                for x in tasks:
                    if found & set(x.upstream):
                        found.add(x.task_id)
                left_out = [x.task_id for x in tasks if x.task_id in found - {t.task_id} and not x.teardown]
            if left_out:
                branches[t.task_id] = frozenset(left_out)
    callbacks = [
        TaskSpec(task_id=f"@on_{end}", kind="callback", trigger_rule="always")
        for end in ("success", "failure")
        if draw(st.booleans())
    ]
    spec = DagSpec(
        dag_id=dag_id,
        tasks=tuple(tasks),
        callbacks=tuple(callbacks),
        max_active_runs=draw(st.sampled_from([None, None, 1, 2])),
        max_active_tasks=draw(st.sampled_from([None, None, 1, 2])),
    )
    return spec, branches


@st.composite
def task_specs(draw: Any, name: str, upstream: list[str], before: list[TaskSpec]) -> TaskSpec:
    kind = draw(st.sampled_from(["task"] * 6 + ["mapped"] * 3 + ["sensor"]))
    rule = draw(st.sampled_from(["all_success"] * 8 + list(TRIGGER_RULES)))
    role = draw(st.sampled_from(["", "", "", "", "setup", "teardown"]))
    options: dict[str, Any] = {}
    if kind == "mapped":
        sources = draw(st.lists(st.sampled_from(upstream), max_size=2)) if upstream else []
        over: list[dict[str, Any]] = [{"arg": f"a{i}", "task": s} for i, s in enumerate(sources)]
        if not over or draw(st.booleans()):
            over.append({"arg": "b", "length": draw(st.integers(0, 3))})
        options["map_over"] = tuple(over)
        if sources and rule not in WAIT_FOR_ALL:
            rule = "all_success"
    if role == "teardown" and kind == "task":
        reached = set(upstream)
        for t in reversed(before):
            if t.task_id in reached:
                reached |= set(t.upstream)
        setups = [t.task_id for t in before if t.setup]
        upstream = list(dict.fromkeys([*upstream, *(s for s in setups if s in reached)]))
        rule = "teardown" if set(setups) & set(upstream) else "all_done"
        options["teardown"] = True
    elif role == "setup" and kind == "task":
        options["setup"] = True
    return TaskSpec(
        task_id=name,
        kind=kind,
        upstream=tuple(upstream),
        trigger_rule=rule,
        queue=draw(st.sampled_from(["default", "default", "cpu"])),
        priority=draw(st.integers(0, 2)),
        retries=draw(st.integers(0, 2)),
        retry_delay_seconds=draw(st.sampled_from([0.0, 60.0])),
        depends_on_past=draw(st.integers(0, 4)) == 0,
        pool=draw(st.sampled_from([None, None, None, "p"])),
        pool_slots=draw(st.integers(1, 3)),
        max_active=draw(st.sampled_from([None, None, None, 1, 2])),
        **options,
    )


def simulate(engine: Engine, s: Scenario, *, by_hand: bool = False) -> Simulation:
    simulation = Simulation(engine, s.dags, s.behaviour, runs=s.runs, pools=s.pools, seed=s.seed, by_hand=by_hand)
    simulation.create()
    for _ in range(s.steps):
        simulation.step()
        if not simulation.cleared:
            simulation.check_active_runs()
    simulation.calm()
    simulation.check_counters()
    simulation.check_events()
    return simulation


def wide(dag_id: str, **options: Any) -> DagSpec:
    """A DAG in which everything meets that takes a lock."""
    return DagSpec(
        dag_id=dag_id,
        tasks=(
            task("make", setup=True),
            task("list", "make", retries=1, retry_delay_seconds=0.0),
            task("load", "list", kind="mapped", map_over=({"arg": "x", "length": 6},), pool="p", pool_slots=2,
                 retries=2, retry_delay_seconds=0.0),
            task("past", "list", depends_on_past=True, retries=3, retry_delay_seconds=0.0),
            task("left", "list", max_active=1),
            task("right", "list"),
            task("join", "load", "left", "right", trigger_rule="all_done"),
            task("remove", "join", "make", teardown=True, trigger_rule="teardown"),
        ),
        callbacks=(task("@on_failure", kind="callback", trigger_rule="always"),),
        **options,
    )  # fmt: skip


@pytest.mark.timeout(1200)
def test_any_order_of_events_comes_to_what_the_model_says(engine: Engine) -> None:
    @profile
    @given(scenarios())
    def check(s: Scenario) -> None:
        # Given some DAGs, what their tasks do, and a long row of ordinary steps and mishaps
        simulation = simulate(engine, s)
        # Then every run, every task and every item came to what it must come to
        for dag in s.dags:
            seen = [simulation.seen(dag.dag_id, n) for n in range(s.runs)]
            expected = all_runs(dag, s.runs, s.behaviour[dag.dag_id], [states for _, states in seen])
            assert seen == expected
            for n, (state, _) in enumerate(seen):
                wanted = {"success": "@on_success", "failed": "@on_failure"}.get(state)
                if wanted in [c.task_id for c in dag.callbacks]:
                    assert simulation.called_back(dag.dag_id, n)[wanted] in ("success", "failed", "skipped")
                elif not simulation.cleared:
                    assert simulation.called_back(dag.dag_id, n) == {}
        simulation.close()

    check()


@pytest.mark.timeout(1200)
def test_whatever_people_do_nothing_hangs_and_nothing_is_miscounted(engine: Engine) -> None:
    @settings(profile, max_examples=LONG or 6)
    @given(scenarios())
    def check(s: Scenario) -> None:
        simulation = simulate(engine, s._replace(steps=s.steps + 50), by_hand=True)
        simulation.check_over()
        simulation.close()

    check()


def test_threads_that_do_everything_at_once_never_wait_for_each_other_in_a_circle(engine: Engine) -> None:
    # Given two schedulers, four workers and two people, all in threads: a deadlock in the database is an error in one
    dags = [wide("d0", max_active_runs=3, max_active_tasks=5), wide("d1")]
    n = 6
    simulation = Simulation(engine, dags, {d.dag_id: Behaviour(1) for d in dags}, runs=n, pools={"p": 4}, seed=1)
    errors: list[BaseException] = []
    over = threading.Event()

    def thread(body: Any, *args: Any) -> threading.Thread:
        def guarded() -> None:
            try:
                body(*args)
            except BaseException as e:
                errors.append(e)
                over.set()

        return threading.Thread(target=guarded)

    def do(move: Any) -> Any:
        with engine.begin() as c:
            return move(c)

    def scheduler() -> None:
        duties = (transitions.wake_retries, transitions.release_past, transitions.admit)
        while not over.is_set():
            for duty in (*duties, simulation._start_runs, transitions.time_out_runs):
                do(duty)
            over.wait(0.02)

    def worker(name: str, seed: int) -> None:
        dice = random.Random(seed)
        held: list[Any] = []
        queues = ["default"]
        while not over.is_set():
            with engine.begin() as c:
                free = 3 - len(held)
                held += transitions.take(c, node_id=name, queues=queues, n=free, lease_seconds=300)
            with engine.begin() as c:
                nodes.heartbeat(c, name, [claim.token for claim in held])
            outcomes = [
                Outcome(
                    x.task_instance, x.token, dice.choice(["success", "success", "success", "failed", "interrupted"])
                )
                for x in held
            ]
            if not outcomes:
                over.wait(0.02)
            with engine.begin() as c:
                done = transitions.finish(c, outcomes, node_id=name, queues=queues, slots=2)
            held = list(done.claims)

    def meddle(dice: random.Random, c: Connection) -> None:
        run = dice.choice(runs)
        name = dice.choice(["make", "list", "load", "load[1]", "past", "join", None])
        what = dice.choice(["clear", "mark", "mark", "end"])
        if what == "clear":
            transitions.clear(c, run, [name] if name else None, by="t")
        elif what == "mark":
            transitions.mark(c, run, [name] if name else None, "success", by="t")
        elif dice.random() < 0.3:
            transitions.end_run(c, run, why="t")

    def person(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(25):
            with contextlib.suppress(RefusedError, UsageError):
                do(lambda c: meddle(dice, c))
            over.wait(0.02)

    while len(simulation.ids) < len(dags) * n:
        simulation.create()
    runs = list(simulation.ids.values())
    people = [thread(person, i) for i in range(2)]
    others = [thread(scheduler) for _ in range(2)] + [thread(worker, f"n{i}", i) for i in range(1, 5)]
    for t in people + others:
        t.start()
    for t in people:
        t.join(60)
    over.set()
    for t in others:
        t.join(60)
    assert not errors
    # Then, when they are gone, everything ends and the counters are right
    simulation.calm()
    simulation.check_limits()
    simulation.check_counters()
    simulation.check_events()
    simulation.check_over()
    simulation.close()
