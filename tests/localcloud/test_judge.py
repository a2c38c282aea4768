"""The judge finds each broken promise, and nothing where none is broken."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.localcloud.judge import Execution, Instance, judge


def entry(event: str, task: str = "a", t: int = 0, **values: Any) -> str:
    line = {
        "event": event,
        "run_id": "1",
        "task_id": task,
        "attempt": 1,
        "node": "n1",
        "pid": 10,
        "machine": "m",
        "t": t,
        "wall": 0.0,
    }
    return json.dumps(line | values)


A = Instance("1", "a")


def test_a_clean_ledger() -> None:
    lines = [entry("start", t=1), entry("start", "b", t=2, pid=11), entry("end", t=3), entry("end", "b", t=4, pid=11)]
    verdict = judge(lines, [(1, "a"), ("1", "b")])
    assert verdict.ok and verdict.summary() == "tasks=2 lost=0 killed=0 overlapped=0 repeated=0"


def test_what_never_completed_is_lost() -> None:
    # never started; started and killed; raised for good
    lines = [entry("start", "b", t=1), entry("start", "c", t=1, pid=2), entry("fail", "c", t=2, pid=2)]
    verdict = judge(lines, [("1", "a"), ("1", "b"), ("1", "c"), ("2", "a")])
    assert verdict.lost == (A, ("1", "b"), ("1", "c"), ("2", "a")) and not verdict.ok
    assert verdict.killed == (Execution(Instance("1", "b"), 1, "n1"),) and verdict.tasks == 0


def test_a_killed_attempt_that_is_done_again_is_killed_and_not_lost() -> None:
    lines = [entry("start", t=1), entry("start", t=5, attempt=2, node="n2"), entry("end", t=6, attempt=2, node="n2")]
    verdict = judge(lines, [A])
    assert verdict.ok and verdict.summary() == "tasks=1 lost=0 killed=1 overlapped=0 repeated=0"


def test_a_retry_after_a_failure_is_nothing() -> None:
    lines = [entry("start", t=1), entry("fail", t=2), entry("start", t=3, attempt=2), entry("end", t=4, attempt=2)]
    assert judge(lines, [A]).summary() == "tasks=1 lost=0 killed=0 overlapped=0 repeated=0"


def test_two_executions_at_one_instant_overlap_even_if_no_lock_told() -> None:
    lines = [entry("start", t=1), entry("start", t=2, pid=11), entry("end", t=3, pid=11), entry("end", t=4)]
    verdict = judge(lines, [A])
    assert verdict.overlapped == (A,) and verdict.repeated == () and not verdict.ok


def test_an_overlap_is_one_however_the_lines_are_ordered() -> None:
    # the second began before the first ended, its line came later
    lines = [entry("start", t=1), entry("end", t=5), entry("start", t=3, pid=11), entry("end", t=6, pid=11)]
    assert judge(lines, [A]).summary() == "tasks=1 lost=0 killed=0 overlapped=1 repeated=0"


def test_clocks_of_two_machines_are_not_compared() -> None:
    lines = [
        entry("start", t=100),
        entry("fail", t=200),
        entry("start", t=150, machine="other", attempt=2),
        entry("end", t=160, machine="other", attempt=2),
    ]
    assert judge(lines, [A]).ok


def test_a_repetition_on_another_machine_is_not_taken_for_an_overlap() -> None:
    lines = [entry("start", t=100), entry("end", t=200), entry("start", t=150, machine="other", attempt=2)]
    assert judge(lines, [A]).summary() == "tasks=1 lost=0 killed=1 overlapped=0 repeated=1"


def test_the_lock_line_is_an_overlap() -> None:
    # the first was killed: its end is not known, only the lock saw that it still ran
    lines = [entry("start", t=1), *(entry(e, t=2, pid=11, attempt=2) for e in ("start", "overlap", "end"))]
    assert judge(lines, [A]).overlapped == (A,)


def test_a_completed_task_that_runs_again_is_repeated() -> None:
    lines = [entry("start", t=1), entry("end", t=2), entry("start", t=3, attempt=2), entry("end", t=4, attempt=2)]
    verdict = judge(lines, [A])
    assert verdict.repeated == (Execution(A, 2, "n1"),) and not verdict.ok


def test_other_runs_are_not_looked_at() -> None:
    lines = [entry("start", t=1), entry("end", t=2), entry("start", t=3, run_id="9"), entry("overlap", t=3, run_id="9")]
    assert judge(lines, [A]).summary() == "tasks=1 lost=0 killed=0 overlapped=0 repeated=0"


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", entry("began"), entry("start", t="x"), entry("start")[:40], '{"event": "start", "t": 1}']
)
def test_a_line_that_cannot_be_read_proves_nothing(line: str) -> None:
    with pytest.raises(ValueError, match="line 2 cannot be read"):
        judge([entry("start", t=1), line], [A])


def test_an_end_without_a_start_proves_nothing() -> None:
    with pytest.raises(ValueError, match="line 1: end without a start"):
        judge([entry("end")], [A])


# A history that keeps the promises: instance by instance, executions one after another, any number of killed and
# failed ones, then at most one that completes.
histories = st.lists(
    st.tuples(st.lists(st.sampled_from(["killed", "fail"]), max_size=3), st.booleans()), min_size=1, max_size=6
)


def play(history: list[tuple[list[str], bool]], mix: st.DataObject) -> list[str]:
    """The lines of a history, the instances woven into each other."""
    rows: list[list[tuple[str, dict[str, Any]]]] = []
    for n, (before, completes) in enumerate(history):
        row: list[tuple[str, dict[str, Any]]] = []
        for attempt, how in enumerate([*before, *(["end"] if completes else [])], start=1):
            who = {"task": f"t{n}", "attempt": attempt, "pid": 100 * n + attempt}
            row.append(("start", who))
            if how != "killed":
                row.append((how, who))
        rows.append(row)
    lines = []
    while any(rows):
        row = mix.draw(st.sampled_from([r for r in rows if r]))
        event, who = row.pop(0)
        lines.append(entry(event, t=len(lines), **who))
    return lines


@given(histories, st.data())
def test_promises_kept_are_judged_so(history: list[tuple[list[str], bool]], data: st.DataObject) -> None:
    verdict = judge(play(history, data), [("1", f"t{n}") for n in range(len(history))])
    assert verdict.tasks == sum(done for _, done in history)
    assert len(verdict.lost) == len(history) - verdict.tasks
    assert len(verdict.killed) == sum(before.count("killed") for before, _ in history)
    assert verdict.overlapped == verdict.repeated == ()


@given(histories, st.data())
def test_one_more_execution_of_something_completed_is_always_found(
    history: list[tuple[list[str], bool]], data: st.DataObject
) -> None:
    # Given a clean history in which something completed
    history = [*history, ([], True)]
    lines = play(history, data)
    last = f"t{len(history) - 1}"
    parsed = [json.loads(line) for line in lines]
    began = next(p["t"] for p in parsed if p["task_id"] == last)
    ended = next(p["t"] for p in parsed if p["task_id"] == last and p["event"] == "end")
    # When it runs once more, at any time, to any end
    again = data.draw(st.integers(began, len(lines) + 3))
    how = data.draw(st.sampled_from(["end", "fail", None]))
    lines.append(entry("start", last, t=again, attempt=9, pid=9999))
    if how:
        lines.append(entry(how, last, t=again + 1, attempt=9, pid=9999))
    # Then it is an overlap or a repetition, never nothing
    verdict = judge(lines, [("1", f"t{n}") for n in range(len(history))])
    found = [i.task_id for i in verdict.overlapped] + [e.instance.task_id for e in verdict.repeated]
    assert found == [last]
    assert bool(verdict.overlapped) == (began <= again < ended) and not verdict.ok
