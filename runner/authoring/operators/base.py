"""`Operator`: a task as a class, made by overriding one method."""

from __future__ import annotations

import copy
import inspect
from abc import ABCMeta, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from runner.authoring.context import Context
from runner.authoring.errors import AuthoringError, caller
from runner.authoring.task import Node, Options, Output
from runner.authoring.templates import mark, render

if TYPE_CHECKING:
    from runner.authoring.dag import DAG

T = TypeVar("T")


class _Joins(ABCMeta):
    """Adds an operator to the DAG whose body is being read, once its whole `__init__` has run."""

    def __call__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        place = caller()
        try:
            inspect.signature(cls.__init__).bind(None, *args, **kwargs)
        except TypeError as e:
            raise AuthoringError(f"{cls.__name__}: {e}", place) from None
        made: T = super().__call__(*args, **kwargs)  # type: ignore[misc]
        made._join(place)  # type: ignore[attr-defined]
        return made


class Operator(Output, metaclass=_Joins):
    """A task as a class: override `execute`, and `__init__` for what it needs to know.

    Made inside a DAG's body it is a task of that DAG: it takes the options of `@task`, works with `>>` and may be
    given to other tasks as what it will have returned. Its attributes may hold the outputs of other tasks, inside
    lists, tuples and dict values too: those tasks become upstream, and the values are there when `execute` is called.
    Text in the attributes named by `template_fields` is filled in for each run, e.g. `{{ logical_date | ds }}`.

    Made anywhere else it is a plain object: `op.execute(context)` runs it, `op.render(context)` is a copy with its
    templates filled in. Raises AuthoringError for what cannot be, with the author's file and line.
    """

    template_fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, task_id: str, **options: Any) -> None:
        try:
            self._options = Options(task_id=task_id, **options)
        except TypeError:
            wrong = ", ".join(sorted(set(options) - set(Options.__dataclass_fields__)))
            known = [n for n in inspect.signature(type(self).__init__).parameters if n not in ("self", "options")]
            known += [n for n in Options.__dataclass_fields__ if n != "task_id"]
            raise AuthoringError(f"{type(self).__name__} has no option {wrong}; it has {', '.join(known)}") from None
        self.task_id = task_id
        self._dag: DAG | None = None

    @abstractmethod
    def execute(self, context: Context) -> Any:
        """Do the work; what is returned must fit into JSON. Raise `Skip` if there is nothing to do."""

    def render(self, context: Context) -> Self:
        """A copy with the templates filled in. Raises TemplateError."""
        return self._with(render(self._attributes(), context))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task_id}{f' in {self._dag.dag_id}' if self._dag else ''}>"

    @property
    def dag(self) -> DAG:  # type: ignore[override]
        """The DAG it is a task of. Raises AuthoringError if it was made outside of one."""
        if self._dag is None:
            raise AuthoringError(f"task {self.task_id!r} was made outside of a DAG: it has no order and no output")
        return self._dag

    def _join(self, place: Any) -> None:
        from runner.authoring.dag import current_dag

        if not hasattr(self, "_options"):
            raise AuthoringError(
                f"{type(self).__name__}.__init__ must call super().__init__(task_id, **options)", place
            )
        attributes = self._attributes()
        dag = current_dag()
        if dag is not None:
            node = Node(self._options, self._run, inspect.signature(self._run), {"attributes": attributes}, place)
            output = dag.add(node, explicit_id=True)
            self._dag, self.task_id = dag, output.task_id  # in a group the id has its name in front

    def _attributes(self) -> dict[str, Any]:
        """What `__init__` has set, templates marked: the marked text is the author's own, values of a run are not."""
        own = {name: value for name, value in vars(self).items() if name not in ("task_id", "_options", "_dag")}
        missing = [name for name in self.template_fields if name not in own]
        if missing:
            raise AuthoringError(
                f"{type(self).__name__}.template_fields names {missing[0]!r}, which __init__ never set"
            )
        where = f"task {self.task_id!r}, {{}}"
        return own | {name: mark(own[name], where.format(name)) for name in self.template_fields}

    def _run(self, attributes: dict[str, Any], context: Context) -> Any:
        return self._with(render(attributes, context)).execute(context)

    def _with(self, attributes: dict[str, Any]) -> Self:
        changed = copy.copy(self)
        vars(changed).update(attributes)
        return changed
