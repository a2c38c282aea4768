"""`DAG` and `@dag`: a schedule, tasks and the order between them."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import datetime as dt
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from runner.authoring.context import Context, running
from runner.authoring.errors import AuthoringError, Place, Skip, caller
from runner.authoring.graph import find_cycle, topological_order
from runner.authoring.rules import decide
from runner.authoring.spec import DagSpec, TaskSpec
from runner.authoring.task import Node, Output, check_id, outputs_in
from runner.authoring.timetables import Timetable, coerce, from_plain, to_plain
from runner.authoring.timetables.base import check_aware, check_zone
from runner.authoring.values import check_return_value

_open: contextvars.ContextVar[tuple[DAG, ...]] = contextvars.ContextVar("sluice_open_dags", default=())


def current_dag() -> DAG | None:
    """The DAG whose body is being read, the innermost one."""
    stack = _open.get()
    return stack[-1] if stack else None


class DAG:
    """A directed acyclic graph of tasks, made with `@dag` or `with DAG("id") as d:`.

    `schedule` None means started by hand only; else a cron expression or one of @hourly, @daily, @weekly,
    @monthly, @yearly, read in `timezone`, a timedelta, or a timetable. `start` must carry a time zone. `catchup`
    False (the default) runs only from now on. Raises AuthoringError with the author's file and line.
    """

    def __init__(
        self,
        dag_id: str,
        *,
        schedule: str | dt.timedelta | Timetable | None = None,
        start: dt.datetime | None = None,
        timezone: str = "UTC",
        catchup: bool = False,
        max_active_runs: int | None = None,
        tags: Sequence[str] = (),
        description: str = "",
    ) -> None:
        check_id("dag_id", dag_id)
        self.place = caller()
        self.dag_id = dag_id
        self.schedule = schedule
        self.start = start
        self.timezone = timezone
        self.catchup = catchup
        self.max_active_runs = max_active_runs
        self.tags = (tags,) if isinstance(tags, str) else tuple(tags)
        self.description = inspect.cleandoc(description)
        self.nodes: dict[str, Node] = {}
        self._next: dict[str, int] = {}  # id → number of the next repeated call
        self._check()
        found = _collected.get()
        if found is not None:
            found.add(self)

    def _check(self) -> None:
        name = f"DAG {self.dag_id!r}"
        check_zone(name, self.timezone)
        if self.start is not None:
            check_aware(f"{name}: start", self.start)
        try:
            self._plain = to_plain(coerce(self.schedule), timezone=self.timezone, start=self.start)
        except AuthoringError as e:
            raise AuthoringError(f"{name}: {e.what}") from None
        if self.catchup and self.start is None:
            raise AuthoringError(f"{name}: catchup needs a start to catch up from")
        if self.max_active_runs is not None and (not isinstance(self.max_active_runs, int) or self.max_active_runs < 1):
            raise AuthoringError(f"{name}: max_active_runs must be 1 or more, not {self.max_active_runs!r}")

    @property
    def timetable(self) -> Timetable:
        """When it runs, with its zone and start filled in."""
        return from_plain(self._plain, self.timezone)

    def __repr__(self) -> str:
        return f"<DAG {self.dag_id}, {len(self.nodes)} tasks>"

    def __enter__(self) -> DAG:
        _open.set((*_open.get(), self))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _open.set(_open.get()[:-1])
        if kind is None:
            self.check_acyclic()

    def add(self, node: Node, *, explicit_id: bool = False) -> Output:
        """Add a task and the dependencies its arguments make. Raises AuthoringError for an id that is taken."""
        wanted = task_id = node.options.task_id
        first = self.nodes.get(wanted)
        if first is not None:
            # A number is only added where one function is called again: two functions, or an id somebody
            # wrote down, would silently become something else.
            if explicit_id or _code(first) is not _code(node):
                raise AuthoringError(
                    f"DAG {self.dag_id!r} already has a task {wanted!r} (line {first.place.line})", node.place
                )
            number = self._next.get(wanted, 2)
            while f"{wanted}__{number}" in self.nodes:
                number += 1
            self._next[wanted] = number + 1
            task_id = f"{wanted}__{number}"
        node.options = dataclasses.replace(node.options, task_id=task_id)
        self.nodes[task_id] = node
        output = Output(self, task_id)
        taken = list(outputs_in(node.arguments))
        for upstream in taken:
            self.depend(output, upstream)
        node.inputs = tuple(dict.fromkeys(x.task_id for x in taken))
        return output

    def depend(self, task: Output, on: Output) -> None:
        """`task` runs after `on`."""
        for end in (task, on):
            if end.dag is not self:
                raise AuthoringError(
                    f"task {end.task_id!r} belongs to DAG {end.dag.dag_id!r}, not to {self.dag_id!r}: "
                    f"tasks of two DAGs cannot depend on each other"
                )
        self.nodes[task.task_id].upstream.setdefault(on.task_id, caller())

    def check_acyclic(self) -> None:
        """Raise AuthoringError naming the path, at the line that closed the circle."""
        cycle = find_cycle(self._upstream())
        if cycle:
            last = max(
                (self.nodes[after].upstream[before] for before, after in itertools.pairwise(cycle)),
                key=lambda place: place.line,
            )
            raise AuthoringError(f"DAG {self.dag_id!r} has a cycle: {' -> '.join(cycle)}", last)

    def _upstream(self) -> dict[str, dict[str, Place]]:
        return {task_id: node.upstream for task_id, node in self.nodes.items()}

    def spec(self) -> DagSpec:
        """The DAG as plain data. Raises AuthoringError if it has a cycle."""
        self.check_acyclic()
        return DagSpec(
            dag_id=self.dag_id,
            description=self.description,
            schedule=self._plain,
            timezone=self.timezone,
            start=None if self.start is None else self.start.isoformat(),
            catchup=self.catchup,
            max_active_runs=self.max_active_runs,
            tags=self.tags,
            tasks=tuple(
                TaskSpec(
                    task_id=task_id,
                    queue=o.queue,
                    priority=o.priority,
                    retries=o.retries,
                    retry_delay_seconds=o.retry_delay.total_seconds(),
                    timeout_seconds=None if o.timeout is None else o.timeout.total_seconds(),
                    trigger_rule=o.trigger_rule,
                    upstream=tuple(node.upstream),
                    inputs=node.inputs,
                )
                for task_id, node in self.nodes.items()
                for o in (node.options,)
            ),
        )

    def run_task(self, task_id: str, context: Context, inputs: dict[str, Any]) -> Any:
        """Run one task's function here and now, and return its value as JSON will carry it.

        `inputs` maps the task's `inputs` (see TaskSpec) to what they returned; one that is missing is given as
        None. Raises whatever the function raises, `Skip` if it skips itself, ReturnValueError if its value
        does not fit into JSON, KeyError for an unknown task.
        """
        try:
            node = self.nodes[task_id]
        except KeyError:
            raise KeyError(f"DAG {self.dag_id!r} has no task {task_id!r}") from None
        with running(context):
            return check_return_value(task_id, node.call(context, inputs))

    def test(
        self,
        logical_date: dt.datetime | None = None,
        *,
        params: dict[str, Any] | None = None,
        storage_url: str = "",
    ) -> dict[str, Any]:
        """Run the whole DAG in this process, in dependency order; returns task id → value.

        A skipped task is not in the result. The first exception of a task ends the test and names the task.
        Retries, queues and timeouts play no part.
        """
        self.check_acyclic()
        when = logical_date or dt.datetime.now(dt.UTC)
        results: dict[str, Any] = {}
        for task_id in topological_order(self._upstream()):
            node = self.nodes[task_id]
            success = sum(1 for before in node.upstream if before in results)
            total = len(node.upstream)
            rule = node.options.trigger_rule
            if decide(rule, total=total, success=success, failed=0, skipped=total - success) != "run":
                continue
            context = Context(
                dag_id=self.dag_id,
                run_id="test",
                task_id=task_id,
                logical_date=when,
                params=params or {},
                node="local",
                storage_url=storage_url,
            )
            try:
                results[task_id] = self.run_task(task_id, context, results)
            except Skip:
                continue
            except Exception as e:
                e.add_note(f"in task {task_id!r} of DAG {self.dag_id!r}")
                raise
        return results


def _code(node: Node) -> object:
    # The code, not the function: one defined inside a loop is made anew each time.
    plain = inspect.unwrap(node.function)
    return getattr(plain, "__code__", plain)


class DagFactory:
    """A function made by `@dag`: calling it reads its body and returns the DAG."""

    def __init__(self, function: Callable[..., Any], dag_id: str | None, options: dict[str, Any]) -> None:
        self.function = function
        self.dag_id = dag_id or function.__name__
        self.options = options
        self.place = Place(function.__code__.co_filename, function.__code__.co_firstlineno)
        self.called = False
        functools.update_wrapper(self, function)
        found = _collected.get()
        if found is not None:
            found.factories.append(self)

    def required(self) -> list[str]:
        """Names of the arguments it cannot be called without."""
        return [
            p.name
            for p in inspect.signature(self.function).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]

    def __call__(self, *args: Any, **kwargs: Any) -> DAG:
        self.called = True
        description = self.options.get("description") or self.function.__doc__ or ""
        try:
            made = DAG(self.dag_id, **{**self.options, "description": description})
        except AuthoringError as e:
            raise AuthoringError(e.what, self.place) from None
        made.place = self.place
        with made:
            self.function(*args, **kwargs)
        return made


@overload
def dag(function: Callable[..., Any], /) -> DagFactory: ...
@overload
def dag(
    *,
    dag_id: str | None = None,
    schedule: str | dt.timedelta | Timetable | None = None,
    start: dt.datetime | None = None,
    timezone: str = "UTC",
    catchup: bool = False,
    max_active_runs: int | None = None,
    tags: Sequence[str] = (),
    description: str = "",
) -> Callable[[Callable[..., Any]], DagFactory]: ...
def dag(function: Callable[..., Any] | None = None, /, *, dag_id: str | None = None, **options: Any) -> Any:
    """Make a function whose body calls `@task` functions a DAG. Options as for `DAG`.

    The id is the function's name unless given, the description its docstring. A factory without parameters
    need not be called: loading the file does it.
    """
    wrong = set(options) - set(inspect.signature(DAG).parameters)
    if wrong:
        raise AuthoringError(f"@dag has no option {', '.join(sorted(wrong))}")

    def decorate(f: Callable[..., Any]) -> DagFactory:
        return DagFactory(f, dag_id, options)

    return decorate if function is None else decorate(function)


class Collected:
    """The DAGs made while a bundle is imported."""

    def __init__(self) -> None:
        self.dags: dict[str, DAG] = {}
        self.factories: list[DagFactory] = []

    def add(self, made: DAG) -> None:
        """Raises AuthoringError naming both places if the id is taken."""
        first = self.dags.get(made.dag_id)
        if first is not None:
            raise AuthoringError(f"duplicate dag id {made.dag_id!r}: also made at {first.place}", made.place)
        self.dags[made.dag_id] = made

    def uncalled(self) -> list[DagFactory]:
        """`@dag` functions nobody called and that can be called without arguments."""
        return [f for f in self.factories if not f.called and not f.required()]


_collected: contextvars.ContextVar[Collected | None] = contextvars.ContextVar("sluice_collected", default=None)


@contextlib.contextmanager
def collecting() -> Iterator[Collected]:
    """Remember every DAG made in the block: how a bundle's loader finds them."""
    found = Collected()
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)
