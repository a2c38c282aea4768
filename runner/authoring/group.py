"""Groups of tasks: a name in front of their ids, and one end for `>>`."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

from runner.authoring.errors import AuthoringError
from runner.authoring.task import Output, check_id, ends

if TYPE_CHECKING:
    from runner.authoring.dag import DAG

_open: contextvars.ContextVar[tuple[TaskGroup, ...]] = contextvars.ContextVar("sluice_open_groups", default=())


class TaskGroup:
    """`with TaskGroup("load") as load:` — tasks made inside are called `load.…` and shown together.

    `extract() >> load >> report()` puts the group's first tasks after extract and report after its last ones. Groups
    may stand inside groups.
    """

    def __init__(self, group_id: str) -> None:
        check_id("group_id", group_id)
        parent = current_group()
        self.group_id: str = f"{parent.group_id}.{group_id}" if parent else group_id
        self.dag: DAG | None = None
        self.tasks: list[str] = []

    def __enter__(self) -> TaskGroup:
        from runner.authoring.dag import current_dag

        self.dag = current_dag()
        if self.dag is None:
            raise AuthoringError(f"group {self.group_id!r} was opened outside of a DAG")
        _open.set((*_open.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        _open.set(_open.get()[:-1])

    def _dag(self) -> DAG:
        if self.dag is None or not self.tasks:
            raise AuthoringError(f"group {self.group_id!r} has no tasks")
        return self.dag

    def roots(self) -> list[Output]:
        """Its tasks that follow no other task of it."""
        dag, inside = self._dag(), set(self.tasks)
        return [Output(dag, t) for t in self.tasks if not inside & set(dag.nodes[t].upstream)]

    def leaves(self) -> list[Output]:
        """Its tasks that no other task of it follows; a teardown is none while there are others."""
        dag = self._dag()
        work = [t for t in self.tasks if not dag.nodes[t].options.teardown] or self.tasks
        followed = {before for t in work for before in dag.nodes[t].upstream}
        return [Output(dag, t) for t in work if t not in followed]

    def __rshift__(self, other: Any) -> Any:
        for after in ends(other, first=True):
            for before in self.leaves():
                before.dag.depend(after, before)
        return other

    def __lshift__(self, other: Any) -> Any:
        for before in ends(other):
            for after in self.roots():
                after.dag.depend(after, before)
        return other

    def __rrshift__(self, other: Any) -> TaskGroup:
        self << other
        return self

    def __rlshift__(self, other: Any) -> TaskGroup:
        self >> other
        return self


def current_group() -> TaskGroup | None:
    """The innermost group whose body is being read."""
    stack = _open.get()
    return stack[-1] if stack else None


def note(task_id: str) -> None:
    """A task was made: it belongs to every group that is open."""
    for group in _open.get():
        group.tasks.append(task_id)
