"""Runs so wide that a start or an end no longer counts."""

from runner.authoring import dag, task


@task
def noop() -> None: ...


@dag
def fan32() -> None:
    """Enough to have every slot's process warm."""
    for i in range(32):
        noop.override(task_id=f"t{i}")()


@dag
def fan2000() -> None:
    for i in range(2000):
        noop.override(task_id=f"t{i}")()


@dag
def fan5000() -> None:
    for i in range(5000):
        noop.override(task_id=f"t{i}")()
