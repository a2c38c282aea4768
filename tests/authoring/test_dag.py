"""Writing a DAG: dependencies from arguments and arrows, ids, options, and the errors of each."""

import datetime as dt
import functools
import inspect
from pathlib import Path
from typing import Any, get_overloads

import pytest

from runner.authoring import DAG, AuthoringError, Context, DagSpec, Skip, dag, get_current_context, task

UTC = dt.UTC
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=UTC)


def line() -> int:
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


@task
def one() -> int:
    return 1


@task
def add(a: int, b: int = 10) -> int:
    return a + b


@task
def total(values: list[int], by_name: dict[str, int]) -> int:
    return sum(values) + sum(by_name.values())


@task
def touch() -> None:
    pass


def test_an_output_as_argument_is_a_dependency_and_the_value() -> None:
    # Given a DAG that hands an output on, directly and inside a list and a dict
    @dag
    def numbers() -> None:
        first = one()
        second = add(first)
        total([first, second], {"again": second})

    # When it is read and run
    made = numbers()
    results = made.test()

    # Then the graph has the edges and every task saw the values
    specs = {t.task_id: t for t in made.spec().tasks}
    assert specs["one"].upstream == ()
    assert specs["add"].upstream == specs["add"].inputs == ("one",)
    assert specs["total"].inputs == ("one", "add")
    assert results == {"one": 1, "add": 11, "total": 23}


def test_arrows_make_order_without_values() -> None:
    with DAG("arrows") as d:
        a, b, c, e = (touch.override(task_id=x)() for x in "abce")
        [a, b] >> c >> e
        e << a

    specs = {t.task_id: t for t in d.spec().tasks}
    assert specs["c"].upstream == ("a", "b")
    assert specs["e"].upstream == ("c", "a")
    assert specs["c"].inputs == specs["e"].inputs == ()


def test_repeated_calls_are_numbered() -> None:
    with DAG("repeated") as d:
        for _ in range(3):
            one()
    assert list(d.nodes) == ["one", "one__2", "one__3"]


def test_repeated_calls_step_over_an_id_somebody_wrote() -> None:
    with DAG("repeated") as d:
        one.override(task_id="one__2")()
        one()
        one()
    assert list(d.nodes) == ["one__2", "one", "one__3"]


def test_a_written_id_twice_is_an_error_with_both_lines() -> None:
    with DAG("twice"):
        first = line() + 1
        touch.override(task_id="load")()
        with pytest.raises(AuthoringError) as e:
            one.override(task_id="load")()
    assert e.value.place == (__file__, line() - 1)
    assert f"already has a task 'load' (line {first})" in str(e.value)


def test_a_written_id_twice_is_an_error_for_one_function_too() -> None:
    with DAG("twice"):
        touch.override(task_id="load")()
        with pytest.raises(AuthoringError, match="already has a task 'load'"):
            touch.override(task_id="load")()


def test_two_functions_of_one_name_are_an_error() -> None:
    def other() -> Any:
        @task
        def one() -> int:
            return 2

        return one

    with DAG("names"):
        one()
        with pytest.raises(AuthoringError, match="already has a task 'one'"):
            other()()


def test_a_function_made_in_a_loop_is_the_same_task_again() -> None:
    with DAG("loop") as d:
        for n in range(2):

            @task
            def step(n: int = n) -> int:
                return n

            step()
    assert d.test() == {"step": 0, "step__2": 1}


def test_options_reach_the_spec() -> None:
    @task(queue="cpu", priority=5, retries=3, retry_delay=dt.timedelta(seconds=1.5), timeout=dt.timedelta(hours=1))
    def work() -> None:
        pass

    with DAG("options") as d:
        work()
        work.override(task_id="late", queue="io", trigger_rule="all_done")()

    first, second = d.spec().tasks
    assert (first.queue, first.priority, first.retries) == ("cpu", 5, 3)
    assert (first.retry_delay_seconds, first.timeout_seconds) == (1.5, 3600)
    assert (second.task_id, second.queue, second.retries, second.trigger_rule) == ("late", "io", 3, "all_done")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retries": -1}, "retries must be"),
        ({"retry_delay": 5}, "retry_delay must be a timedelta"),
        ({"timeout": dt.timedelta(0)}, "timeout must be"),
        ({"trigger_rule": "all_good"}, "trigger_rule must be one of all_success"),
        ({"queue": "a b"}, "queue 'a b'"),
        ({"task_id": "../x"}, "task_id '../x'"),
        ({"retrys": 1}, "no option retrys"),
    ],
)
def test_a_wrong_option_names_itself_and_its_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AuthoringError, match=message) as e:
        touch.override(**options)
    assert e.value.place == (__file__, line() - 1)
    with pytest.raises(AuthoringError, match=message) as e:
        task(**options)(touch.function)
    assert e.value.place == (__file__, line() - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timezone": "Mars/Olympus"}, "unknown time zone 'Mars/Olympus'"),
        ({"timezone": "../etc/passwd"}, "unknown time zone"),
        ({"start": dt.datetime(2026, 1, 1)}, "has no time zone"),  # noqa: DTZ001
        ({"schedule": "@fortnightly"}, "unknown schedule '@fortnightly'"),
        ({"schedule": 5}, "schedule must be"),
        ({"catchup": True}, "catchup needs a start"),
        ({"max_active_runs": 0}, "max_active_runs must be 1 or more"),
    ],
)
def test_a_wrong_dag_names_itself_and_its_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AuthoringError, match=message) as e:
        DAG("wrong", **options)
    assert e.value.place == (__file__, line() - 1)
    assert "'wrong'" in str(e.value)


def test_a_type_checker_knows_every_option_of_a_dag() -> None:
    _, options = get_overloads(dag)
    known, taken = inspect.signature(options).parameters, inspect.signature(DAG).parameters
    assert {n: (p.annotation, p.default) for n, p in known.items() if n != "dag_id"} == {
        n: (p.annotation, p.default) for n, p in taken.items() if n != "dag_id"
    }


def test_a_bad_dag_id_is_refused() -> None:
    with pytest.raises(AuthoringError, match="dag_id 'a/b'"):
        DAG("a/b")


def test_a_cycle_is_named_as_a_path_at_the_line_that_closes_it() -> None:
    # Given three tasks in a row
    with pytest.raises(AuthoringError) as e, DAG("circle"):
        a, b, c = (touch.override(task_id=x)() for x in "abc")
        a >> b >> c
        # When the last is put before the first
        closing = line() + 1
        c >> a
    # Then the error names the way round and that line
    assert "has a cycle:" in str(e.value)
    path = str(e.value).rpartition(": ")[2].split(" -> ")
    assert path[0] == path[-1] and "".join(path[:-1]) in ("abc", "bca", "cab")
    assert e.value.place == (__file__, closing)


def test_tasks_of_two_dags_cannot_depend_on_each_other() -> None:
    with DAG("left"):
        a = one()
    with DAG("right"), pytest.raises(AuthoringError, match="belongs to DAG 'left', not to 'right'"):
        add(a)


def test_a_call_outside_of_a_dag_says_how_to_run_the_function() -> None:
    with pytest.raises(AuthoringError, match=r"outside of a DAG.*add\.function"):
        add(1)
    assert add.function(1) == 11


def test_wrong_arguments_are_found_when_the_dag_is_read() -> None:
    with DAG("arguments"), pytest.raises(AuthoringError, match="'add': missing a required argument: 'a'") as e:
        add()
    assert e.value.place == (__file__, line() - 1)


@pytest.mark.parametrize("use", [bool, list, lambda out: out["key"]])
def test_an_output_has_no_value_yet(use: Any) -> None:
    with DAG("early"):
        out = one()
        with pytest.raises(AuthoringError, match="known only once the task has run"):
            use(out)


def test_a_task_gets_its_context_both_ways() -> None:
    # Given a task with `context` between its parameters, and one that asks for it
    @task
    def stamp(a: int, context: Context, b: int = 0, *rest: int) -> list[Any]:
        return [a, b, *rest, context.task_id, context.logical_date.isoformat()]

    @task
    def ask() -> Any:
        return get_current_context().params

    with DAG("stamps") as d:
        stamp(1, 2, 3)
        ask()

    # When the DAG is tested for a date and with params
    results = d.test(NOON, params={"x": 1})

    # Then both saw them, and outside of a task there is none
    assert results == {"stamp": [1, 2, 3, "stamp", "2026-03-01T12:00:00+00:00"], "ask": {"x": 1}}
    with pytest.raises(LookupError, match="no task is running"):
        get_current_context()


def test_a_skipped_task_skips_what_needs_it() -> None:
    @task
    def nothing() -> None:
        raise Skip

    with DAG("skips") as d:
        a = nothing()
        add(a)
        a >> touch.override(trigger_rule="none_failed")()
        a >> one.override(trigger_rule="one_failed")()
    assert d.test() == {"touch": None}


def test_a_failing_task_is_named() -> None:
    @task
    def boom() -> None:
        raise ValueError("no")

    with DAG("fails") as d:
        boom()
    with pytest.raises(ValueError, match="no") as e:
        d.test()
    assert e.value.__notes__ == ["in task 'boom' of DAG 'fails'"]


def test_run_task_runs_one_task_with_the_values_it_is_given() -> None:
    with DAG("single") as d:
        add(one(), b=5)
    context = Context(dag_id="single", run_id="7", task_id="add", logical_date=NOON)
    assert d.run_task("add", context, {"one": 37}) == 42
    with pytest.raises(KeyError, match="has no task 'gone'"):
        d.run_task("gone", context, {})


def test_a_factory_can_make_many_dags() -> None:
    def build(name: str) -> DAG:
        @dag(dag_id=f"customer_{name}", tags=["generated"])
        def customer() -> None:
            """Load one customer."""
            one()

        return customer()

    specs = [build(n).spec() for n in ("a", "b")]
    assert [s.dag_id for s in specs] == ["customer_a", "customer_b"]
    assert specs[0].tags == ("generated",) and specs[0].description == "Load one customer."


def test_a_spec_survives_json() -> None:
    with DAG("json", schedule="@daily", start=NOON, timezone="Europe/Berlin", catchup=True, tags=("a",)) as d:
        add(one())
    spec = d.spec()
    assert spec.start == "2026-03-01T12:00:00+00:00" and spec.timetable() == d.timetable
    assert DagSpec.from_json(spec.to_json()) == spec
    # a newer release may write more than this one knows
    newer = spec.to_json() | {"colour": "red"}
    newer["tasks"][0]["colour"] = "red"
    assert DagSpec.from_json(newer) == spec


def test_a_context_survives_json_and_refuses_naive_times() -> None:
    context = Context(dag_id="d", run_id="1", task_id="t", logical_date=NOON, params={"a": [1]}, attempt=3)
    assert Context.from_json(context.to_json() | {"unknown": 1}) == context
    assert context.interval_start == context.interval_end == NOON
    with pytest.raises(ValueError, match="logical_date must have a time zone"):
        Context(dag_id="d", run_id="1", task_id="t", logical_date=NOON.replace(tzinfo=None))


def test_two_wrapped_functions_of_one_name_are_an_error_too() -> None:
    # Given functions behind one decorator, whose code is the decorator's
    def wrapped(f: Any) -> Any:
        @functools.wraps(f)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return f(*args, **kwargs)

        return wrapper

    def other(context: Context) -> str:
        return context.task_id

    with DAG("wrapped") as d:
        task(task_id="load")(wrapped(other))()
        with pytest.raises(AuthoringError, match="already has a task 'load'"):
            task(task_id="load")(wrapped(one.function))()
    # and the wrapped function still gets its context
    assert d.test() == {"load": "load"}


def test_a_task_reads_and_writes_files(tmp_path: Path) -> None:
    @task
    def write(context: Context) -> str:
        context.storage.put("numbers.txt", b"1 2 3")
        return context.storage.url_of("numbers.txt")

    with DAG("files") as d:
        write()
    assert d.test(storage_url=f"file://{tmp_path}/store/")["write"] == f"file://{tmp_path}/store/files/numbers.txt"
    assert (tmp_path / "store/files/numbers.txt").read_bytes() == b"1 2 3"
    with pytest.raises(RuntimeError, match=r"no storage: give .* a storage_url"):
        d.test()
