"""The judge of a long run, on ledgers written by hand: without it nothing says that it would see anything."""

import pytest

from .tally import Tally, tally


def judged(*lines: str) -> Tally:
    return tally(line.encode() + b"\n" for line in lines)


def test_a_task_that_runs_once_is_completed_and_nothing_else():
    t = judged("S 1 a 1", "S 1 b 1", "E 1 b 1", "E 1 a 1")
    assert (t.executions, t.completed, t.killed) == (2, 2, 0)
    assert not (t.overlapped or t.failed or t.twice or t.repeated)
    assert t.has_completed(1, "a")
    assert not t.has_completed(1, "c")


def test_an_attempt_that_was_killed_and_came_back_is_no_fault():
    t = judged("S 1 a 1", "S 1 a 2", "E 1 a 2")
    assert (t.executions, t.completed, t.killed) == (2, 1, 1)
    assert not (t.overlapped or t.repeated)


def test_a_task_that_never_ends_is_not_completed():
    t = judged("S 1 a 1", "S 1 a 2", "S 2 a 1")
    assert (t.completed, t.killed) == (0, 3)
    assert not t.has_completed(1, "a")


def test_an_attempt_that_ends_after_the_next_began_overlaps_it():
    assert judged("S 1 a 1", "S 1 a 2", "E 1 a 2", "E 1 a 1").overlapped == {(1, "a")}
    assert judged("S 1 a 1", "S 1 a 2", "E 1 a 1").overlapped == {(1, "a")}


def test_a_lock_that_was_taken_is_an_overlap_even_if_the_other_was_killed():
    assert judged("S 1 a 1", "S 1 a 2", "O 1 a 2", "E 1 a 2").overlapped == {(1, "a")}


def test_a_completed_task_that_runs_again_is_named_with_its_attempt():
    t = judged("S 1 a 1", "E 1 a 1", "S 1 a 2", "E 1 a 2")
    assert t.repeated == {(1, "a"): [2]}
    assert t.completed == 1


def test_one_attempt_that_starts_twice_is_found():
    assert judged("S 1 a 1", "E 1 a 1", "S 1 a 1", "E 1 a 1").twice == {(1, "a")}


def test_a_task_that_raised_is_found():
    assert judged("S 1 a 1", "F 1 a 1").failed == {(1, "a")}


@pytest.mark.parametrize("line", ["E 1 a 1", "S 1 a", "S one a 1"])
def test_a_ledger_with_holes_proves_nothing(line):
    with pytest.raises(ValueError, match="ledger"):
        judged(line)
