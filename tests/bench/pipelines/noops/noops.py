"""No-op tasks in the shapes that are measured."""

import time

from runner.authoring import dag, task


@task
def noop() -> None: ...


@task
def now() -> float:
    return time.time()


def chain(length: int) -> None:
    last = noop.override(task_id="t0")()
    for i in range(1, length):
        last = last >> noop.override(task_id=f"t{i}")()


@dag
def chain4() -> None:
    chain(4)


@dag
def chain20() -> None:
    chain(20)


@dag
def fan200() -> None:
    for i in range(200):
        noop.override(task_id=f"t{i}")()


@dag
def diamond() -> None:
    """One task, three beside each other, one that waits for all three."""
    middle = [noop.override(task_id=f"middle{i}")() for i in range(3)]
    noop.override(task_id="first")() >> middle
    middle >> noop.override(task_id="last")()


@dag
def clock() -> None:
    now()
