"""`@task`: a function becomes a task of the DAG in whose body it is called."""

from __future__ import annotations

import datetime as dt
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn, overload

from runner.authoring.context import Context, get_current_context
from runner.authoring.errors import AuthoringError, Place, caller
from runner.authoring.notifiers import to_json
from runner.authoring.patience import Patience
from runner.authoring.rules import MAPPED_RULES, TRIGGER_RULES

if TYPE_CHECKING:
    from runner.authoring.dag import DAG

ID_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


Callback = Callable[..., Any]


@dataclass(frozen=True)
class Options:
    """How a task is run; the same for every call unless overridden.

    queue, priority: where and when it runs; higher goes first. pool, pool_slots: slots shared with other DAGs.
    max_active: instances of it at work at once, over all runs. retries: more tries after a failure, `retry_delay`
    apart, each `retry_backoff` times the one before, at most `retry_max_delay`, less a random share of up to
    `retry_jitter`; an exception of `no_retry_on` is not tried again. timeout: of one try. depends_on_past: waits
    until it has succeeded in the run before. setup, teardown: makes and removes what the tasks between need.
    isolation "fresh": a process of its own; memory_mb, cpu_seconds: limits of it. on_lost "hold": if its node is not
    heard any more, wait for proof that it is dead. on_success, on_failure, on_retry: called with (context, error or
    None) where the task ran. outlets: assets it updates. notify: a Notify, or
    several: who is told. connections: names of those it needs; a push to an
    environment that lacks one is refused.
    """

    task_id: str
    queue: str = "default"
    priority: int = 0
    retries: int = 0
    retry_delay: dt.timedelta = dt.timedelta(minutes=1)
    retry_backoff: float = 1.0
    retry_max_delay: dt.timedelta | None = None
    retry_jitter: float = 0.0
    no_retry_on: tuple[type[BaseException], ...] = ()
    timeout: dt.timedelta | None = None
    trigger_rule: str = "all_success"
    pool: str | None = None
    pool_slots: int = 1
    max_active: int | None = None
    depends_on_past: bool = False
    setup: bool = False
    teardown: bool = False
    isolation: str = "reuse"
    memory_mb: int | None = None
    cpu_seconds: float | None = None
    on_lost: str = "retry"
    on_success: Callback | None = None
    on_failure: Callback | None = None
    on_retry: Callback | None = None
    outlets: tuple[str, ...] = ()
    connections: tuple[str, ...] = ()
    notify: Any = None

    def __post_init__(self) -> None:
        check_id("task_id", self.task_id)
        check_id("queue", self.queue)
        if self.pool is not None:
            check_id("pool", self.pool)
        if isinstance(self.no_retry_on, type):
            object.__setattr__(self, "no_retry_on", (self.no_retry_on,))
        told = to_json(f"task {self.task_id!r}", self.notify, never="deadline")
        object.__setattr__(self, "notify", told)
        outlets = (self.outlets,) if isinstance(self.outlets, str) else self.outlets
        object.__setattr__(self, "outlets", tuple(str(o) for o in outlets))
        if isinstance(self.connections, str):
            object.__setattr__(self, "connections", (self.connections,))
        for name, fits, wanted in self._checks():
            if not fits:
                raise self._wrong(name, wanted)

    def _checks(self) -> Iterator[tuple[str, bool, str]]:
        zero = dt.timedelta(0)
        yield "priority", _is_int(self.priority), "an int"
        yield "retries", _is_int(self.retries, 0), "an int, 0 or more"
        delay = isinstance(self.retry_delay, dt.timedelta) and self.retry_delay >= zero
        yield "retry_delay", delay, "a timedelta, 0 or more"
        yield "retry_backoff", _is_number(self.retry_backoff, 1, 100), "a number from 1 to 100"
        cap = self.retry_max_delay is None or (
            isinstance(self.retry_max_delay, dt.timedelta) and self.retry_max_delay > zero
        )
        yield "retry_max_delay", cap, "a timedelta above 0, or None"
        yield "retry_jitter", _is_number(self.retry_jitter, 0, 1), "a number from 0 to 1"
        classes = isinstance(self.no_retry_on, tuple) and all(
            isinstance(c, type) and issubclass(c, BaseException) for c in self.no_retry_on
        )
        yield "no_retry_on", classes, "exception classes"
        timeout = self.timeout is None or (isinstance(self.timeout, dt.timedelta) and self.timeout > zero)
        yield "timeout", timeout, "a timedelta above 0, or None"
        yield "trigger_rule", self.trigger_rule in TRIGGER_RULES, f"one of {', '.join(TRIGGER_RULES)}"
        yield "pool_slots", _is_int(self.pool_slots, 1), "an int, 1 or more"
        yield "max_active", self.max_active is None or _is_int(self.max_active, 1), "an int, 1 or more, or None"
        yield "setup", not (self.setup and self.teardown), "given without teardown: a task is one of the two"
        yield "isolation", self.isolation in ("reuse", "fresh"), "reuse or fresh"
        yield "memory_mb", self.memory_mb is None or _is_int(self.memory_mb, 16), "an int, 16 or more, or None"
        cpu = self.cpu_seconds is None or _is_number(self.cpu_seconds, 0.1, 1e9)
        yield "cpu_seconds", cpu, "a number above 0, or None"
        names = isinstance(self.connections, tuple | list) and all(isinstance(c, str) for c in self.connections)
        yield "connections", names, "names of connections"
        yield "on_lost", self.on_lost in ("retry", "hold"), "retry or hold"
        for name in ("on_success", "on_failure", "on_retry"):
            yield name, getattr(self, name) is None or callable(getattr(self, name)), "a function, or None"

    def execution(self) -> dict[str, Any]:
        """How its process is made, as authoring.spec.TaskSpec has it: nothing that is the default."""
        limits = {"memory_mb": self.memory_mb, "cpu_seconds": self.cpu_seconds}
        found: dict[str, Any] = {k: v for k, v in limits.items() if v is not None}
        if found or self.isolation != "reuse":
            found["isolation"] = "fresh"  # a limit of the kernel stays with the process
        return found

    def _wrong(self, name: str, wanted: str) -> AuthoringError:
        return AuthoringError(f"task {self.task_id!r}: {name} must be {wanted}, not {getattr(self, name)!r}")


def _is_int(value: object, least: int | None = None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


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
        for end in ends(other, first=True):
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


def ends(value: Any, *, first: bool = False) -> list[Output]:
    """The outputs on one side of `>>`; of a group its last tasks, or its first ones."""
    from runner.authoring.group import TaskGroup

    found: list[Output] = []
    for part in value if isinstance(value, list | tuple) else [value]:
        if isinstance(part, Output):
            found.append(part)
        elif isinstance(part, TaskGroup):
            found += part.roots() if first else part.leaves()
        else:
            raise AuthoringError(f"both sides of >> must be tasks, groups or lists of them, not {value!r}")
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
    mapped: dict[str, Any] = field(default_factory=dict)  # argument → the list or the output it is mapped over
    branch: str = ""  # branch, short_circuit: what its return value decides
    group: str | None = None
    sensor: dict[str, Any] | None = None  # what a scheduler waits for, as authoring.spec.TaskSpec has it

    def map_over(self) -> tuple[dict[str, Any], ...]:
        """What it is mapped over, as authoring.spec.TaskSpec has it."""
        return tuple(
            {"arg": name, "task": over.task_id} if isinstance(over, Output) else {"arg": name, "length": len(over)}
            for name, over in self.mapped.items()
        )

    def call(self, context: Context, inputs: dict[str, Any], items: dict[str, Any] | None = None) -> Any:
        """Run the function with upstream values in place of the outputs.

        `items`: of one item of a mapped task, see state.transitions.Claim.
        """
        filled = {name: fill(value, inputs) for name, value in self.arguments.items()}
        for name, item in (items or {}).items():
            filled[name] = item["value"] if "value" in item else self.mapped[name][item["index"]]
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

    def __init__(
        self, function: Callable[..., Any], options: Options, explicit_id: bool = False, branch: str = ""
    ) -> None:
        self.function = function
        self.options = options
        self.branch = branch
        self.explicit_id = explicit_id
        self.signature = inspect.signature(function)
        functools.update_wrapper(self, function)

    def override(self, **options: Any) -> TaskFunction:
        """The same task with other options, for the calls made through what is returned."""
        try:
            changed = replace(self.options, **options)
        except TypeError:
            raise AuthoringError(unknown_options(options)) from None
        return TaskFunction(self.function, changed, "task_id" in options or self.explicit_id, self.branch)

    def partial(self, **fixed: Any) -> Partial:
        """The arguments that are the same for every item; `.map(…)` gives the others."""
        return Partial(self, fixed)

    def map(self, **over: Any) -> Output:
        """One instance of the task for each element: `load.map(file=list_files())`, or of a list written down.

        Of several lists: for each combination. What it returns downstream is the list of what the instances returned.
        """
        return Partial(self, {}).map(**over)

    def __call__(self, *args: Any, **kwargs: Any) -> Output:
        return self.add(args, kwargs, {})

    def add(self, args: tuple[Any, ...], kwargs: dict[str, Any], mapped: dict[str, Any]) -> Output:
        """Add a task with these arguments to the DAG whose body is being read."""
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
            arguments = dict(given.bind(*args, **kwargs, **mapped).arguments)
        except TypeError as e:
            raise AuthoringError(f"task {self.options.task_id!r}: {e}", place) from None
        arguments = {name: value for name, value in arguments.items() if name not in mapped}
        node = Node(self.options, self.function, self.signature, arguments, place, mapped=mapped, branch=self.branch)
        return dag.add(node, explicit_id=self.explicit_id)


class Partial:
    """A task with some of its arguments, to be mapped over the others."""

    def __init__(self, task: TaskFunction, fixed: dict[str, Any]) -> None:
        self.task = task
        self.fixed = fixed

    def map(self, **over: Any) -> Output:
        """As TaskFunction.map. Raises AuthoringError for what is neither a list nor the output of a task."""
        name = self.task.options.task_id
        if not over:
            raise AuthoringError(f"task {name!r}: map() needs a list by the name of an argument, e.g. map(file=files)")
        if self.task.branch:
            raise AuthoringError(f"task {name!r} decides what runs after it: it cannot be mapped")
        lists = {}
        for argument, value in over.items():
            if not isinstance(value, Output | list | tuple):
                raise AuthoringError(
                    f"task {name!r}: map({argument}=…) needs a list or what another task returns, not {value!r}"
                )
            if not isinstance(value, Output) and any(True for _ in outputs_in(value)):
                raise AuthoringError(f"task {name!r}: map({argument}=…) over a list with outputs of tasks in it")
            lists[argument] = value
        rule = self.task.options.trigger_rule
        if rule not in MAPPED_RULES and any(isinstance(value, Output) for value in lists.values()):
            raise AuthoringError(
                f"task {name!r}: with trigger_rule {rule!r} it may start before the list it is mapped over is there; "
                f"use one of {', '.join(MAPPED_RULES)}"
            )
        twice = sorted(set(self.fixed) & set(lists))
        if twice:
            raise AuthoringError(f"task {name!r}: {twice[0]} is given both to partial() and to map()")
        return self.task.add((), self.fixed, lists)


def unknown_options(options: Iterable[str]) -> str:
    """The message for task options that do not exist."""
    known = list(Options.__dataclass_fields__)
    wrong = ", ".join(sorted(set(options) - set(known)))
    return f"@task has no option {wrong}; it has {', '.join(known)}"


class _Task:
    """`@task`, and its relatives `@task.branch`, `@task.short_circuit`, `@task.setup`, `@task.teardown`,
    `@task.sensor`."""

    @overload
    def __call__(self, function: Callable[..., Any], /) -> TaskFunction: ...
    @overload
    def __call__(self, **options: Any) -> Callable[[Callable[..., Any]], TaskFunction]: ...
    def __call__(self, *function: Any, **options: Any) -> Any:
        """Make a function a task: `@task` or `@task(queue="cpu", retries=3)`. Options: see Options.

        The id is the function's name unless given; calling the function again in the same DAG makes `name__2`.
        Raises AuthoringError for an option that cannot be.
        """
        return self._made("", function[0] if function else None, options)

    def branch(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """A task that returns the id, or a list of ids, of the tasks right after it that are to run.

        The others right after it are skipped, unless they also follow one that runs. None: all are.
        """
        return self._made("branch", function, options)

    def short_circuit(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """A task that skips everything after it when it returns something false."""
        return self._made("short_circuit", function, options)

    def setup(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """A task that makes what the tasks after it need; clearing one of those runs it again too."""
        return self._made("", function, {**options, "setup": True})

    def teardown(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """A task that removes what setup tasks before it have made, whatever became of the tasks between.

        It runs if any of those setups has succeeded. Its own failure does not fail the run.
        """
        return self._made("", function, {**options, "teardown": True})

    def sensor(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """A task that waits: the function is called again and again until it returns something true.

        It runs in a worker, and between the calls no slot is held. Anything true but True itself is the task's value.
        Options: those of authoring.patience.Patience, and of `@task`; `poke_timeout` bounds one call.
        """
        patience = {k: options.pop(k) for k in list(options) if k in Patience.__dataclass_fields__}
        if "poke_timeout" in options:
            options["timeout"] = options.pop("poke_timeout")

        def decorate(f: Callable[..., Any]) -> TaskFunction:
            made: TaskFunction = self._made("", _poked(f, Patience(**patience)), options)
            return made

        return decorate if function is None else decorate(function)

    def _made(self, branch: str, function: Callable[..., Any] | None, options: dict[str, Any]) -> Any:
        def decorate(f: Callable[..., Any]) -> TaskFunction:
            values = {k: v for k, v in options.items() if not (k == "task_id" and v is None)}
            try:
                made = Options(**{"task_id": f.__name__, **values})
            except TypeError:
                raise AuthoringError(unknown_options(options)) from None
            return TaskFunction(f, made, branch=branch)

        return decorate if function is None else decorate(function)


def _poked(function: Callable[..., Any], patience: Patience) -> Callable[..., Any]:
    @functools.wraps(function)
    def poke(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        if not found:
            patience.defer(get_current_context())
        return None if found is True else found

    return poke


task = _Task()
