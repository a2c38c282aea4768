"""`@task`: a function becomes a task of the DAG in whose body it is called."""

from __future__ import annotations

import datetime as dt
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn, overload

from runner.authoring.context import Context
from runner.authoring.errors import AuthoringError, Place, caller
from runner.authoring.rules import TRIGGER_RULES

if TYPE_CHECKING:
    from runner.authoring.dag import DAG

ID_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


@dataclass(frozen=True)
class Options:
    """How a task is run; the same for every call unless overridden."""

    task_id: str
    queue: str = "default"
    priority: int = 0
    retries: int = 0
    retry_delay: dt.timedelta = dt.timedelta(minutes=1)
    timeout: dt.timedelta | None = None
    trigger_rule: str = "all_success"

    def __post_init__(self) -> None:
        check_id("task_id", self.task_id)
        check_id("queue", self.queue)
        if not isinstance(self.priority, int):
            raise self._wrong("priority", "an int")
        if not isinstance(self.retries, int) or self.retries < 0:
            raise self._wrong("retries", "an int, 0 or more")
        if not isinstance(self.retry_delay, dt.timedelta) or self.retry_delay < dt.timedelta(0):
            raise self._wrong("retry_delay", "a timedelta, 0 or more")
        if self.timeout is not None and (not isinstance(self.timeout, dt.timedelta) or self.timeout <= dt.timedelta(0)):
            raise self._wrong("timeout", "a timedelta above 0, or None")
        if self.trigger_rule not in TRIGGER_RULES:
            raise self._wrong("trigger_rule", f"one of {', '.join(TRIGGER_RULES)}")

    def _wrong(self, name: str, wanted: str) -> AuthoringError:
        return AuthoringError(f"task {self.task_id!r}: {name} must be {wanted}, not {getattr(self, name)!r}")


def check_id(name: str, value: object) -> None:
    """Raise AuthoringError unless `value` can stand in a path, a queue name and a log line as it is."""
    if not isinstance(value, str) or not ID_PATTERN.fullmatch(value):
        raise AuthoringError(f"{name} {value!r} must be 1 to 200 of A-Z a-z 0-9 _ . - and not start with . or -")


class Output:
    """What a task will have returned, and the task itself as an end of `>>`."""

    def __init__(self, dag: DAG, task_id: str) -> None:
        self.dag = dag
        self.task_id = task_id

    def __repr__(self) -> str:
        return f"<output of {self.task_id} in {self.dag.dag_id}>"

    def __rshift__(self, other: Any) -> Any:
        for end in ends(other):
            self.dag.depend(end, self)
        return other

    def __lshift__(self, other: Any) -> Any:
        for end in ends(other):
            self.dag.depend(self, end)
        return other

    # `[a, b] >> c`: the list has no `>>`, so Python asks the right-hand side.
    def __rrshift__(self, other: Any) -> Output:
        self << other
        return self

    def __rlshift__(self, other: Any) -> Output:
        self >> other
        return self

    def __bool__(self) -> bool:
        self._too_early("tested")

    def __iter__(self) -> Iterator[Any]:
        self._too_early("iterated")

    def __getitem__(self, key: Any) -> Any:
        self._too_early("indexed")

    def _too_early(self, done: str) -> NoReturn:
        raise AuthoringError(
            f"the output of task {self.task_id!r} cannot be {done} while the DAG is being written: it is known "
            f"only once the task has run; pass it to a task and do it there"
        )


def ends(value: Any) -> list[Output]:
    """The outputs on one side of `>>`."""
    found = [value] if isinstance(value, Output) else list(value) if isinstance(value, list | tuple) else None
    if found is None or not all(isinstance(x, Output) for x in found):
        raise AuthoringError(f"both sides of >> must be tasks or lists of tasks, not {value!r}")
    return found


@dataclass
class Node:
    """One task of one DAG: the function, the arguments it was called with, and its place in the graph."""

    options: Options
    function: Callable[..., Any]
    signature: inspect.Signature
    arguments: dict[str, Any]
    place: Place
    upstream: dict[str, Place] = field(default_factory=dict)  # task id → the line that made the edge
    inputs: tuple[str, ...] = ()

    def call(self, context: Context, inputs: dict[str, Any]) -> Any:
        """Run the function with upstream values in place of the outputs."""
        filled = {name: fill(value, inputs) for name, value in self.arguments.items()}
        bound = inspect.BoundArguments(self.signature, {})
        for name in self.signature.parameters:  # .args and .kwargs expect the signature's order
            if name in filled:
                bound.arguments[name] = filled[name]
            elif name == "context":
                bound.arguments[name] = context
        return self.function(*bound.args, **bound.kwargs)


def outputs_in(value: Any) -> Iterator[Output]:
    """Every output in an argument, inside lists, tuples and dict values too."""
    if isinstance(value, Output):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from outputs_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from outputs_in(item)


def fill(value: Any, inputs: dict[str, Any]) -> Any:
    """The argument with each output replaced by what its task returned (None if it returned nothing)."""
    if isinstance(value, Output):
        return inputs.get(value.task_id)
    if isinstance(value, list):
        return [fill(item, inputs) for item in value]
    if type(value) is tuple:
        return tuple(fill(item, inputs) for item in value)
    if isinstance(value, dict):
        return {key: fill(item, inputs) for key, item in value.items()}
    return value


class TaskFunction:
    """A function made by `@task`. Calling it in a DAG's body adds a task; `.function` is the plain one."""

    def __init__(self, function: Callable[..., Any], options: Options, explicit_id: bool = False) -> None:
        self.function = function
        self.options = options
        self.explicit_id = explicit_id
        self.signature = inspect.signature(function)
        functools.update_wrapper(self, function)

    def override(self, **options: Any) -> TaskFunction:
        """The same task with other options, for the calls made through what is returned."""
        try:
            changed = replace(self.options, **options)
        except TypeError:
            raise AuthoringError(unknown_options(options)) from None
        return TaskFunction(self.function, changed, explicit_id="task_id" in options or self.explicit_id)

    def __call__(self, *args: Any, **kwargs: Any) -> Output:
        from runner.authoring.dag import current_dag

        dag = current_dag()
        place = caller()
        if dag is None:
            raise AuthoringError(
                f"task {self.options.task_id!r} was called outside of a DAG; "
                f"to run the plain function use {self.function.__name__}.function(...)",
                place,
            )
        given = self.signature
        if "context" in given.parameters and "context" not in kwargs:  # filled in when the task runs
            given = given.replace(parameters=[p for n, p in given.parameters.items() if n != "context"])
        try:
            arguments = dict(given.bind(*args, **kwargs).arguments)
        except TypeError as e:
            raise AuthoringError(f"task {self.options.task_id!r}: {e}", place) from None
        node = Node(self.options, self.function, self.signature, arguments, place)
        return dag.add(node, explicit_id=self.explicit_id)


def unknown_options(options: Iterable[str]) -> str:
    """The message for task options that do not exist."""
    known = list(Options.__dataclass_fields__)
    wrong = ", ".join(sorted(set(options) - set(known)))
    return f"@task has no option {wrong}; it has {', '.join(known)}"


@overload
def task(function: Callable[..., Any], /) -> TaskFunction: ...
@overload
def task(
    *,
    task_id: str | None = None,
    queue: str = "default",
    priority: int = 0,
    retries: int = 0,
    retry_delay: dt.timedelta = dt.timedelta(minutes=1),
    timeout: dt.timedelta | None = None,
    trigger_rule: str = "all_success",
) -> Callable[[Callable[..., Any]], TaskFunction]: ...
def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a task: `@task` or `@task(queue="cpu", retries=3)`.

    The id is the function's name unless given; calling the function again in the same DAG makes `name__2`.
    Higher `priority` goes first within a queue. Raises AuthoringError for an option that cannot be.
    """

    def decorate(f: Callable[..., Any]) -> TaskFunction:
        values = {k: v for k, v in options.items() if not (k == "task_id" and v is None)}
        try:
            return TaskFunction(f, Options(**{"task_id": f.__name__, **values}))
        except TypeError:
            raise AuthoringError(unknown_options(options)) from None

    return decorate if function is None else decorate(function)
