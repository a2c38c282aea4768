"""`DAG` and `@dag`: a schedule, tasks and the order between them."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import datetime as dt
import functools
import inspect
import itertools
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from runner.authoring import params as declared
from runner.authoring.assets import Asset, Condition, split
from runner.authoring.context import Context, running
from runner.authoring.errors import AuthoringError, Defer, Fail, Place, Skip, caller
from runner.authoring.graph import find_cycle, reachable, topological_order
from runner.authoring.group import current_group, note
from runner.authoring.lookup import Connection, given, providing
from runner.authoring.notifiers import Notify, to_json
from runner.authoring.rules import decide
from runner.authoring.spec import DagSpec, TaskSpec
from runner.authoring.task import Node, Options, Output, TaskFunction, check_id, outputs_in
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
    @monthly, @yearly, read in `timezone`, a timedelta, or a timetable; or assets: a list (all of them updated since the
    last run), or `a | b`. `start` must carry a time zone. `catchup` False (the default) runs only from now on.
    `max_active_runs`: more runs wait; `max_active_tasks` counts over all runs. `run_timeout` ends a run that takes
    longer. `on_success`, `on_failure` are run, as tasks, when a run has ended. `params`: name → default or Param, for
    each run. `notify`: who is told about runs. Raises AuthoringError with the author's file and line.
    """

    def __init__(
        self,
        dag_id: str,
        *,
        schedule: str | dt.timedelta | Timetable | Condition | Sequence[Asset] | None = None,
        start: dt.datetime | None = None,
        timezone: str = "UTC",
        catchup: bool = False,
        max_active_runs: int | None = None,
        max_active_tasks: int | None = None,
        run_timeout: dt.timedelta | None = None,
        on_success: Callable[..., Any] | None = None,
        on_failure: Callable[..., Any] | None = None,
        params: Mapping[str, Any] | None = None,
        notify: Notify | Sequence[Notify] | None = None,
        tags: Sequence[str] = (),
        description: str = "",
    ) -> None:
        check_id("dag_id", dag_id)
        self.place = caller()
        self.dag_id = dag_id
        self.schedule, self.assets = split(schedule)
        self.start = start
        self.timezone = timezone
        self.catchup = catchup
        self.max_active_runs = max_active_runs
        self.max_active_tasks = max_active_tasks
        self.run_timeout = run_timeout
        self.tags = (tags,) if isinstance(tags, str) else tuple(tags)
        self.description = inspect.cleandoc(description)
        self.params = declared.to_json(f"DAG {dag_id!r}", params or {})
        self.notify = to_json(f"DAG {dag_id!r}", notify, never="retry")
        self.nodes: dict[str, Node] = {}
        self.callbacks: dict[str, Node] = {}
        self._next: dict[str, int] = {}  # id → number of the next repeated call
        self._check()
        for name, function in (("on_success", on_success), ("on_failure", on_failure)):
            if function is not None:
                self.callbacks[f"@{name}"] = self._callback(name, function)
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
        missing = declared.required(self.params)
        if missing and (self.schedule is not None or self.assets is not None):
            raise AuthoringError(f"{name}: param {missing[0]!r} needs a default, or the DAG no schedule")
        if self.catchup and self.start is None:
            raise AuthoringError(f"{name}: catchup needs a start to catch up from")
        for limit in ("max_active_runs", "max_active_tasks"):
            value = getattr(self, limit)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise AuthoringError(f"{name}: {limit} must be 1 or more, not {value!r}")
        timeout = self.run_timeout
        if timeout is not None and (not isinstance(timeout, dt.timedelta) or timeout <= dt.timedelta(0)):
            raise AuthoringError(f"{name}: run_timeout must be a timedelta above 0, or None, not {timeout!r}")

    def _callback(self, name: str, function: Any) -> Node:
        """A function to be called, as a task, when a run has ended; a `@task` brings its options along."""
        options = Options(task_id=name)
        if isinstance(function, TaskFunction):
            options, function = function.options, function.function
        if not callable(function):
            raise AuthoringError(f"DAG {self.dag_id!r}: {name} must be a function, not {function!r}")
        return Node(options, function, inspect.signature(function), {}, self.place)

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
        group = current_group()
        wanted = task_id = f"{group.group_id}.{node.options.task_id}" if group else node.options.task_id
        node.group = group.group_id if group else None
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
        note(task_id)
        output = Output(self, task_id)
        taken = list(outputs_in(node.arguments))
        for upstream in (*taken, *outputs_in(node.mapped)):
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
        upstream = self._linked()
        return DagSpec(
            dag_id=self.dag_id,
            description=self.description,
            schedule=self._plain,
            assets=self.assets,
            timezone=self.timezone,
            start=None if self.start is None else self.start.isoformat(),
            catchup=self.catchup,
            max_active_runs=self.max_active_runs,
            max_active_tasks=self.max_active_tasks,
            run_timeout_seconds=None if self.run_timeout is None else self.run_timeout.total_seconds(),
            params=self.params,
            notify=self.notify,
            tags=self.tags,
            tasks=tuple(
                _task_spec(task_id, node, upstream[task_id], self._rule(node, upstream[task_id]))
                for task_id, node in self.nodes.items()
            ),
            callbacks=tuple(
                dataclasses.replace(_task_spec(task_id, node, (), "always"), kind="callback")
                for task_id, node in self.callbacks.items()
            ),
        )

    def _rule(self, node: Node, upstream: Sequence[str]) -> str:
        """The trigger rule; a teardown waits for all and asks whether a setup of its has succeeded."""
        if not node.options.teardown:
            return node.options.trigger_rule
        return "teardown" if any(self.nodes[t].options.setup for t in upstream) else "all_done"

    def _linked(self) -> dict[str, tuple[str, ...]]:
        """The upstream tasks of each task; a teardown also follows the setups before it itself."""
        upstream = {task_id: tuple(node.upstream) for task_id, node in self.nodes.items()}
        for task_id, node in self.nodes.items():
            if node.options.teardown:
                setups = [t for t in reachable(upstream, [task_id]) if self.nodes[t].options.setup]
                upstream[task_id] = tuple(dict.fromkeys((*upstream[task_id], *sorted(setups))))
        return upstream

    def run_task(
        self, task_id: str, context: Context, inputs: dict[str, Any], items: dict[str, Any] | None = None
    ) -> Any:
        """Run one task's function here and now, and return its value as JSON will carry it.

        `inputs` maps the task's `inputs` (see TaskSpec) to what they returned; one that is missing is given as
        None. `items`: of one item of a mapped task. Raises whatever the function raises, `Skip` if it skips itself,
        ReturnValueError if its value does not fit into JSON, KeyError for an unknown task.
        """
        node = self._node(task_id)
        with running(context):
            return check_return_value(task_id, node.call(context, inputs, items))

    def _node(self, task_id: str) -> Node:
        found = self.nodes.get(task_id) or self.callbacks.get(task_id)
        if found is None:
            raise KeyError(f"DAG {self.dag_id!r} has no task {task_id!r}")
        return found

    def left_out(self, task_id: str, value: Any) -> list[str]:
        """The tasks that are skipped because this one, a branch, returned `value`. Raises ValueError for no such task.

        Of a branch those right after it that neither are chosen nor follow one that is; of a short circuit everything
        after it.
        """
        branch = self._node(task_id).branch
        if not branch:
            return []
        downstream: dict[str, list[str]] = {t: [] for t in self.nodes}
        for t, node in self.nodes.items():
            for before in node.upstream:
                downstream[before].append(t)
        if branch == "short_circuit":
            after = [] if value else reachable(downstream, [task_id])
            return [t for t in after if not self.nodes[t].options.teardown]
        chosen = [value] if isinstance(value, str) else list(value or ())
        group = self.nodes[task_id].group
        names = {t: t for t in downstream[task_id]}
        names |= {t.removeprefix(f"{group}."): t for t in downstream[task_id]} if group else {}
        wrong = [c for c in chosen if c not in names]
        if wrong:
            known = ", ".join(downstream[task_id]) or "none"
            raise ValueError(
                f"task {task_id!r} branches to {wrong[0]!r}, which is not right after it; after it: {known}"
            )
        kept = {names[c] for c in chosen}
        kept |= set(reachable(downstream, kept))
        return [t for t in downstream[task_id] if t not in kept and not self.nodes[t].options.teardown]

    def may_retry(self, task_id: str, error: BaseException) -> bool:
        """Whether trying this task again after this exception may help."""
        found = self.nodes.get(task_id) or self.callbacks.get(task_id)
        return found is not None and not isinstance(error, (Fail, *found.options.no_retry_on))

    def call_back(self, context: Context, result: str, error: str | None, *, retry: bool) -> None:
        """Call the task's own function for how it ended. What that raises is printed and changes nothing."""
        found = self.nodes.get(context.task_id)
        if found is None:
            return
        o = found.options
        again = result == "failed" and retry and context.try_number <= o.retries
        call = {"success": o.on_success, "failed": o.on_retry if again else o.on_failure}.get(result)
        if call is None:
            return
        try:
            with running(context):
                call(context, error)
        except Exception:
            traceback.print_exc()

    def test(
        self,
        logical_date: dt.datetime | None = None,
        *,
        params: dict[str, Any] | None = None,
        storage_url: str = "",
        connections: Mapping[str, Connection | str] | None = None,
        variables: Mapping[str, Any] | None = None,
        on_end: Callable[[str, str, Any], None] = lambda *_: None,
    ) -> dict[str, Any]:
        """Run the whole DAG in this process, in dependency order; returns task id → value.

        A skipped task is not in the result. The first exception of a task ends the test and names the task.
        `on_end` is told of every task: its id, its state, and its value or its exception. Retries, queues and
        timeouts play no part. `connections` (URLs or Connections) and `variables` are what `connection(name)` and
        `variable(name)` find, before what the environment says.
        """
        self.check_acyclic()
        values = declared.defaults(self.params) | (params or {})
        wrong = declared.problems(self.params, values)
        if wrong:
            raise ValueError("; ".join(wrong))
        when = logical_date or dt.datetime.now(dt.UTC)
        results: dict[str, Any] = {}
        ends: dict[str, str] = {}
        upstream = self._linked()
        for task_id in topological_order(upstream):
            node = self.nodes[task_id]
            if ends.get(task_id) or not self._due(node, upstream[task_id], ends):
                ends.setdefault(task_id, "skipped")
                on_end(task_id, "skipped", None)
                continue
            context = Context(
                dag_id=self.dag_id,
                run_id="test",
                task_id=task_id,
                logical_date=when,
                params=values,
                node="local",
                storage_url=storage_url,
                waiting_since=dt.datetime.now(dt.UTC),
            )
            try:
                with providing(given(connections or {}, variables or {})):
                    results[task_id] = self._test_task(node, context, results)
            except Skip:
                ends[task_id] = "skipped"
                on_end(task_id, "skipped", None)
                continue
            except Exception as e:
                e.add_note(f"in task {task_id!r} of DAG {self.dag_id!r}")
                on_end(task_id, "failed", e)
                raise
            ends[task_id] = "success"
            on_end(task_id, "success", results[task_id])
            ends.update(dict.fromkeys(self.left_out(task_id, results[task_id]), "skipped"))
        return results

    def _due(self, node: Node, upstream: Sequence[str], ends: dict[str, str]) -> bool:
        success = sum(ends.get(before) == "success" for before in upstream)
        if node.options.teardown:
            setups = [t for t in upstream if self.nodes[t].options.setup]
            return not setups or any(ends.get(t) == "success" for t in setups)
        total = len(upstream)
        rule = node.options.trigger_rule
        return decide(rule, total=total, success=success, failed=0, skipped=total - success) == "run"

    def _test_task(self, node: Node, context: Context, results: dict[str, Any]) -> Any:
        if not node.mapped:
            while True:
                try:
                    return self.run_task(context.task_id, context, results)
                except Defer as e:
                    time.sleep(e.delay.total_seconds())
        lists: list[Sequence[Any]] = []
        for over in node.mapped.values():
            found = results.get(over.task_id) if isinstance(over, Output) else over
            if not isinstance(found, list | tuple):
                raise TypeError(f"cannot map over what task {over.task_id!r} returned: it is no list")
            lists.append(found)
        values: list[Any] = []
        skipped = 0
        for index, combination in enumerate(itertools.product(*lists)):
            items = {name: {"value": value} for name, value in zip(node.mapped, combination, strict=True)}
            one = dataclasses.replace(context, map_index=index)
            try:
                values.append(self.run_task(context.task_id, one, results, items))
            except Skip:
                values.append(None)
                skipped += 1
        if len(values) == skipped:
            raise Skip("nothing to map over")
        return values


def _task_spec(task_id: str, node: Node, upstream: Sequence[str], trigger_rule: str) -> TaskSpec:
    o = node.options
    return TaskSpec(
        task_id=task_id,
        kind="mapped" if node.mapped else "sensor" if node.sensor else "task",
        sensor=node.sensor,
        queue=o.queue,
        priority=o.priority,
        retries=o.retries,
        retry_delay_seconds=o.retry_delay.total_seconds(),
        retry_backoff=o.retry_backoff,
        retry_max_delay_seconds=None if o.retry_max_delay is None else o.retry_max_delay.total_seconds(),
        retry_jitter=o.retry_jitter,
        timeout_seconds=None if o.timeout is None else o.timeout.total_seconds(),
        trigger_rule=trigger_rule,
        pool=o.pool,
        pool_slots=o.pool_slots,
        max_active=o.max_active,
        depends_on_past=o.depends_on_past,
        setup=o.setup,
        teardown=o.teardown,
        group=node.group,
        on_lost=o.on_lost,
        execution=o.execution(),
        map_over=node.map_over(),
        outlets=o.outlets,
        notify=o.notify,
        upstream=tuple(upstream),
        inputs=node.inputs,
    )


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
    schedule: str | dt.timedelta | Timetable | Condition | Sequence[Asset] | None = None,
    start: dt.datetime | None = None,
    timezone: str = "UTC",
    catchup: bool = False,
    max_active_runs: int | None = None,
    max_active_tasks: int | None = None,
    run_timeout: dt.timedelta | None = None,
    on_success: Callable[..., Any] | None = None,
    on_failure: Callable[..., Any] | None = None,
    params: Mapping[str, Any] | None = None,
    notify: Notify | Sequence[Notify] | None = None,
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
