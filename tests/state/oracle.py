"""What a DAG's runs must come to, said as plainly as possible: no counters, no order of events, no database.

Only specs, what each task does when it runs, and the states of the run before go in. `tests/state/test_interleavings`
holds the engine against it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from runner.authoring.spec import DagSpec, TaskSpec

FAILED = ("failed", "upstream_failed")
States = dict[tuple[str, int], str]  # (task, map index) → state; "waiting" is what waits for ever


@dataclass
class Behaviour:
    """What tasks do, by their names alone: so it is the same in whatever order they run.

    branches: task → the tasks it leaves out when it succeeds.
    """

    seed: int
    branches: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def outcomes(self, run: int, task: TaskSpec, index: int) -> list[str]:
        """One after another, of attempts that are not interrupted: success, failed, fatal (no retry), …"""
        dice = random.Random(f"{self.seed} {run} {task.task_id} {index}")
        if task.kind == "sensor":
            return dice.choices(["success", "failed", "skipped"], [6, 2, 1])
        # Long enough for the most tries there are, and the most that it is put off.
        return [*dice.choices(["success", "failed", "fatal", "skipped", "deferred"], [10, 5, 1, 1, 1], k=4), "success"]

    def length(self, run: int, task: str) -> int | None:
        """Of the list that the task returns; None: it returns no list."""
        return random.Random(f"{self.seed} {run} {task} value").choice([0, 1, 2, 2, 3, None])


def attempted(task: TaskSpec, outcomes: Iterable[str]) -> str:
    """How a task that may start ends."""
    tries = 0
    for outcome in outcomes:
        if outcome in ("success", "skipped") or task.kind == "sensor":
            return outcome
        tries += outcome in ("failed", "fatal")
        if outcome == "fatal" or tries > task.retries:
            return "failed"
    raise AssertionError("more attempts than the behaviour knows of")


def _rule(when: Callable[[list[str]], bool], otherwise: Callable[[list[str]], str]) -> Callable[[list[str]], str]:
    return lambda ups: "run" if when(ups) else otherwise(ups)


def _skip(_: list[str]) -> str:
    return "skipped"


def _fail_or_skip(ups: list[str]) -> str:
    return "upstream_failed" if any(u in FAILED for u in ups) else "skipped"


# What becomes of a task when all its upstream tasks, of which there is at least one, have ended so.
RULES: dict[str, Callable[[list[str]], str]] = {
    "all_success": _rule(lambda ups: all(u == "success" for u in ups), _fail_or_skip),
    "all_failed": _rule(lambda ups: all(u in FAILED for u in ups), _skip),
    "all_skipped": _rule(lambda ups: all(u == "skipped" for u in ups), _skip),
    "all_done": lambda _: "run",
    "one_success": _rule(lambda ups: "success" in ups, _fail_or_skip),
    "one_failed": _rule(lambda ups: any(u in FAILED for u in ups), _skip),
    "one_done": _rule(lambda ups: any(u != "skipped" for u in ups), _skip),
    "none_failed": _rule(lambda ups: not any(u in FAILED for u in ups), _fail_or_skip),
    "none_skipped": _rule(lambda ups: "skipped" not in ups, _skip),
    "none_failed_min_one_success": _rule(
        lambda ups: "success" in ups and not any(u in FAILED for u in ups), _fail_or_skip
    ),
    "always": lambda _: "run",
}


def decided(task: TaskSpec, ups: list[str | None], setups: list[str | None]) -> str | None:
    """What its rule says while some upstream tasks (None) have not ended; None while their ends may still matter."""
    if not ups or task.trigger_rule == "always":
        return "run"
    unknown = ups.count(None)
    if task.trigger_rule in ("all_done", "teardown"):
        if unknown:
            return None
        return "run" if task.trigger_rule == "all_done" or "success" in setups else "skipped"
    known = [u for u in ups if u is not None]
    ways = itertools.product(("success", "failed", "skipped"), repeat=unknown)
    answers = {RULES[task.trigger_rule]([*known, *way]) for way in ways}
    return answers.pop() if len(answers) == 1 else None


def _after(dag: DagSpec, start: str) -> set[str]:
    found = {start}
    for t in dag.tasks:  # in an order in which the upstream ones come first
        if found & set(t.upstream):
            found.add(t.task_id)
    return found


def run_states(dag: DagSpec, run: int, behaviour: Behaviour, past: States | None, seen: States) -> States:
    """The final state of every instance of a run, `past` being those of the run before.

    Where the order of events may decide between a branch that leaves a task out and the task's own rule, `seen`,
    what the engine came to, says which: both are right.
    """
    states: States = {}
    tasks = {t.task_id: t for t in dag.tasks}

    def end(task: str, unknown: Collection[str] = ()) -> str | None:
        state = states[task, -1]
        return None if task in unknown or state == "waiting" else state

    for t in dag.tasks:
        setups = [u for u in t.upstream if tasks[u].setup]
        decision = decided(t, [end(u) for u in t.upstream], [end(u) for u in setups])
        for branch, left_out in behaviour.branches.items():
            if t.task_id in left_out and states[branch, -1] == "success":
                later = _after(dag, branch)
                before = decided(t, [end(u, later) for u in t.upstream], [end(u, later) for u in setups])
                if before is None or seen.get((t.task_id, -1)) == "skipped":
                    decision = "skipped"
        before_it = (past or {}).get((t.task_id, -1), "success") if t.depends_on_past else "success"
        if decision == "run" and before_it not in ("success", "skipped"):
            decision = None
        if decision is None:
            states[t.task_id, -1] = "waiting"
        elif decision != "run":
            states[t.task_id, -1] = decision
        elif t.kind == "mapped":
            states |= _mapped(t, {k: v.kind for k, v in tasks.items()}, run, behaviour, states)
        else:
            states[t.task_id, -1] = attempted(t, behaviour.outcomes(run, t, -1))
    return states


def _mapped(t: TaskSpec, kinds: Mapping[str, str], run: int, behaviour: Behaviour, states: States) -> States:
    lengths: list[int] = []
    for over in t.map_over:
        source = over.get("task")
        n: int | None
        if source is None:
            n = over["length"]
        elif kinds[source] == "mapped":
            n = sum(task == source and index >= 0 for task, index in states)
        else:
            n = behaviour.length(run, source) if states[source, -1] == "success" else None
        if n is None:
            return {(t.task_id, -1): "failed"}
        lengths.append(n)
    items = {(t.task_id, i): attempted(t, behaviour.outcomes(run, t, i)) for i in range(math.prod(lengths))}
    ends = list(items.values())
    whole = "failed" if "failed" in ends else "success" if "success" in ends else "skipped"
    return {(t.task_id, -1): whole, **items}


def run_state(dag: DagSpec, states: States) -> str:
    """What the run itself comes to."""
    ends = {t.task_id: states[t.task_id, -1] for t in dag.tasks}
    if "waiting" in ends.values():
        return "running"
    work = [t for t in dag.tasks if not t.teardown]
    leaves = [t.task_id for t in work if not any(t.task_id in other.upstream for other in work)]
    return "failed" if any(ends[t] in FAILED for t in leaves) else "success"


def all_runs(dag: DagSpec, n: int, behaviour: Behaviour, seen: list[States]) -> list[tuple[str, States]]:
    """The states of `n` runs, one logical date after another, created in that order: (the run's, its instances')."""
    out: list[tuple[str, States]] = []
    past: States | None = None
    for run in range(n):
        stuck = sum(state == "running" for state, _ in out)
        if dag.max_active_runs is not None and stuck >= dag.max_active_runs:
            out.append(("queued", {}))
            continue
        states = run_states(dag, run, behaviour, past, seen[run])
        out.append((run_state(dag, states), states))
        past = states
    return out
