"""Groups, branches, setup and teardown, mapping, callbacks: what they become, and what cannot be."""

from __future__ import annotations

import datetime as dt
import inspect
from typing import Any

import pytest

from runner.authoring import DAG, AuthoringError, Context, DagSpec, Fail, Skip, TaskGroup, get_current_context, task

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def line() -> int:
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


def upstream(d: DAG) -> dict[str, set[str]]:
    return {t.task_id: set(t.upstream) for t in d.spec().tasks}


def nothing(**_: Any) -> None:
    pass


@task
def a() -> int:
    return 1


@task
def b(x: Any = None) -> Any:
    return x


@task
def c(x: Any = None) -> Any:
    return x


@task
def numbers() -> list[int]:
    return [1, 2, 3]


@task
def double(x: int, plus: int = 0) -> int:
    return 2 * x + plus


# --- groups ---------------------------------------------------------------------------------------------------


def test_a_group_names_its_tasks_and_has_two_ends() -> None:
    with DAG("groups") as d:
        first = a()
        with TaskGroup("load") as load:
            x, y = b(), c()
            x >> y
            with TaskGroup("inner"):
                z = a()
            y >> z
        last = c()
        first >> load >> last
    assert upstream(d) == {
        "a": set(), "load.b": {"a"}, "load.c": {"load.b"}, "load.inner.a": {"load.c"}, "c": {"load.inner.a"},
    }  # fmt: skip
    assert [t.group for t in d.spec().tasks] == [None, "load", "load", "load.inner", None]


def test_groups_and_lists_stand_on_both_sides() -> None:
    with DAG("sides") as d:
        with TaskGroup("one") as one:
            a()
        with TaskGroup("two") as two:
            b()
        [one, c()] >> two
        two << a()
    assert upstream(d)["two.b"] == {"one.a", "c", "a"}


def test_a_teardown_is_no_end_of_its_group() -> None:
    with DAG("ends") as d:
        with TaskGroup("g") as g:
            make, remove = a.override(setup=True)(), b.override(teardown=True)()
            make >> (work := c()) >> remove
        g >> a()
        assert work.task_id == "g.c"
    assert upstream(d)["a"] == {"g.c"}
    assert upstream(d)["g.b"] == {"g.c", "g.a"}, "it also follows the setup before it"


def test_groups_that_cannot_be() -> None:
    with pytest.raises(AuthoringError, match="group 'x' was opened outside of a DAG"), TaskGroup("x"):
        pass
    with pytest.raises(AuthoringError, match="group_id 'a b'"):
        TaskGroup("a b")
    with pytest.raises(AuthoringError, match="group 'empty' has no tasks"), DAG("d"):
        with TaskGroup("empty") as empty:
            pass
        empty >> a()
    with pytest.raises(AuthoringError, match="both sides of >> must be tasks, groups or lists"), DAG("d"):
        a() >> 5


# --- branches -------------------------------------------------------------------------------------------------


def branching(choice: Any) -> DAG:
    @task.branch
    def choose() -> Any:
        return choice

    with DAG("branching") as d:
        after = [b(), c()]
        choose() >> after
        with TaskGroup("after"):
            end = a.override(trigger_rule="none_failed_min_one_success")()
        after >> end
    return d


@pytest.mark.parametrize(
    ("choice", "left_out", "ran"),
    [
        ("b", ["c"], {"choose", "b", "after.a"}),
        (["b", "c"], [], {"choose", "b", "c", "after.a"}),
        (None, ["b", "c"], {"choose"}),
        ([], ["b", "c"], {"choose"}),
    ],
)
def test_a_branch_leaves_out_what_it_does_not_choose(choice: Any, left_out: list[str], ran: set[str]) -> None:
    d = branching(choice)
    assert d.left_out("choose", choice) == left_out
    assert set(d.test()) == ran


def test_a_branch_to_nowhere_names_what_there_is() -> None:
    with pytest.raises(ValueError, match="branches to 'gone', which is not right after it; after it: b, c"):
        branching("gone").test()


def test_a_branch_keeps_what_follows_one_that_it_chose_and_every_teardown() -> None:
    @task.branch
    def choose() -> str:
        return "b"

    with DAG("keeps") as d, TaskGroup("g"):
        chosen, x, y = choose(), b(), c()
        chosen >> [x, y]
        x >> y
        chosen >> a.override(teardown=True)()
    # Inside its group it may say the short name
    assert d.left_out("g.choose", "b") == []
    assert d.left_out("g.choose", "g.c") == ["g.b"]


def test_a_short_circuit_skips_everything_but_teardowns() -> None:
    @task.short_circuit
    def go(value: Any) -> Any:
        return value

    def build(value: Any) -> DAG:
        with DAG("short") as d:
            make = a.override(setup=True)()
            (
                make
                >> go(value)
                >> b()
                >> c.override(trigger_rule="all_done")()
                >> a.override(teardown=True, task_id="z")()
            )
        return d

    assert set(build(0).test()) == {"a", "go", "z"}
    assert set(build(1).test()) == {"a", "go", "b", "c", "z"}
    assert build(0).left_out("go", 0) == ["b", "c"]
    assert build(0).left_out("b", 0) == []


# --- setup and teardown ---------------------------------------------------------------------------------------


def test_a_teardown_follows_its_setups_and_knows_it() -> None:
    @task.setup
    def make() -> None:
        pass

    @task.teardown
    def remove() -> None:
        pass

    with DAG("tidy") as d:
        make() >> b() >> c() >> remove()
    with DAG("loose") as loose:
        b() >> remove()
    spec = {t.task_id: t for t in d.spec().tasks}
    assert spec["make"].setup and spec["remove"].teardown
    assert (set(spec["remove"].upstream), spec["remove"].trigger_rule) == ({"c", "make"}, "teardown")
    assert loose.spec().tasks[-1].trigger_rule == "all_done"


def test_a_teardown_runs_if_its_setup_has() -> None:
    @task
    def skips() -> None:
        raise Skip

    def build(first: Any) -> DAG:
        with DAG("tidy") as d:
            first.override(setup=True)() >> skips.override(task_id="work")() >> a.override(teardown=True, task_id="z")()
        return d

    assert set(build(a).test()) == {"a", "z"}
    assert build(skips).test() == {}


# --- mapping --------------------------------------------------------------------------------------------------


def test_a_mapped_task_runs_for_each_combination() -> None:
    with DAG("maps") as d:
        doubled = double.partial(plus=100).map(x=numbers())
        b(doubled)
        double.map(x=[1, 2], plus=(10, 20))
    spec = {t.task_id: t for t in d.spec().tasks}
    assert spec["double"].kind == "mapped"
    assert spec["double"].map_over == ({"arg": "x", "task": "numbers"},)
    assert (spec["double"].upstream, spec["double"].inputs) == (("numbers",), ())
    assert spec["double__2"].map_over == ({"arg": "x", "length": 2}, {"arg": "plus", "length": 2})
    assert spec["b"].inputs == ("double",)
    assert DagSpec.from_json(d.spec().to_json()) == d.spec()
    found = d.test()
    assert found["double"] == found["b"] == [102, 104, 106]
    assert found["double__2"] == [12, 22, 14, 24]


def test_an_item_gets_its_element_by_number_or_as_it_is() -> None:
    with DAG("items") as d:
        double.map(x=[5, 6])
    context = Context(dag_id="items", run_id="1", task_id="double", logical_date=NOON, map_index=1)
    assert d.run_task("double", context, {}, {"x": {"index": 1}}) == 12
    assert d.run_task("double", context, {}, {"x": {"value": 50}}) == 100


def test_items_skip_for_themselves_and_all_of_them_skip_the_task() -> None:
    @task
    def even(x: int) -> int:
        if x % 2:
            raise Skip
        return get_current_context().map_index

    def build(values: list[int]) -> DAG:
        with DAG("some") as d:
            b(even.map(x=values))
        return d

    assert build([1, 2, 3, 4]).test() == {"even": [None, 1, None, 3], "b": [None, 1, None, 3]}
    assert build([1, 3]).test() == {}
    assert build([]).test() == {}


def test_what_is_no_list_fails_the_test_too() -> None:
    with DAG("no_list") as d:
        double.map(x=a())
    with pytest.raises(TypeError, match="cannot map over what task 'a' returned: it is no list"):
        d.test()


def test_what_cannot_be_mapped_says_so_at_its_line() -> None:
    branch = task.branch(nothing)
    early = double.override(trigger_rule="one_success")
    with DAG("bad"):
        for make, message in (
            (lambda: double.map(), r"map\(\) needs a list by the name of an argument"),
            (lambda: double.map(x=5), r"map\(x=…\) needs a list or what another task returns, not 5"),
            (lambda: double.map(x="abc"), "needs a list"),
            (lambda: double.map(x=[a()]), "over a list with outputs of tasks in it"),
            (lambda: double.partial(x=1).map(x=[1]), "x is given both to partial"),
            (lambda: double.map(y=[1]), "unexpected keyword argument 'y'|missing a required argument: 'x'"),
            (lambda: double.partial(plus=1).map(plus=[1]), "plus is given both|missing"),
            (lambda: branch.map(x=[1]), "it cannot be mapped"),
            (lambda: early.map(x=numbers()), "may start before the list it is mapped over is there"),
        ):
            with pytest.raises(AuthoringError, match=message) as e:
                make()
            assert e.value.place.file == __file__
    with pytest.raises(AuthoringError, match="was called outside of a DAG"):
        double.map(x=[1])
    with DAG("fine"):
        early.map(x=[1, 2])


# --- options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": "high"}, "priority must be an int"),
        ({"priority": True}, "priority must be an int"),
        ({"retry_backoff": 0.5}, "retry_backoff must be a number from 1 to 100"),
        ({"retry_max_delay": dt.timedelta(0)}, "retry_max_delay must be"),
        ({"retry_jitter": 1.5}, "retry_jitter must be a number from 0 to 1"),
        ({"retry_jitter": float("nan")}, "retry_jitter must be"),
        ({"no_retry_on": ("ValueError",)}, "no_retry_on must be exception classes"),
        ({"pool": "a b"}, "pool 'a b'"),
        ({"pool_slots": 0}, "pool_slots must be an int, 1 or more"),
        ({"max_active": 0}, "max_active must be"),
        ({"setup": True, "teardown": True}, "a task is one of the two"),
        ({"isolation": "docker"}, "isolation must be reuse or fresh"),
        ({"memory_mb": 8}, "memory_mb must be an int, 16 or more"),
        ({"cpu_seconds": 0}, "cpu_seconds must be a number above 0"),
        ({"on_lost": "panic"}, "on_lost must be retry or hold"),
        ({"on_failure": "mail"}, "on_failure must be a function"),
    ],
)
def test_a_wrong_option_names_itself_and_its_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AuthoringError, match=message) as e:
        task(**options)(nothing)
    assert e.value.place == (__file__, line() - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_active_tasks": 0}, "max_active_tasks must be 1 or more"),
        ({"run_timeout": 5}, "run_timeout must be a timedelta above 0"),
        ({"on_success": "mail"}, "on_success must be a function"),
    ],
)
def test_a_wrong_dag_says_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AuthoringError, match=message):
        DAG("wrong", **options)


def test_all_options_reach_the_spec() -> None:
    @task(
        pool="api", pool_slots=2, max_active=3, depends_on_past=True, retry_backoff=2, retry_jitter=0.5,
        retry_max_delay=dt.timedelta(minutes=5), memory_mb=100, cpu_seconds=2.5, on_lost="hold", outlets="s3://x",
    )  # fmt: skip
    def work() -> None:
        pass

    with DAG("all", max_active_tasks=4, run_timeout=dt.timedelta(hours=1)) as d:
        work()
        work.override(task_id="plain", memory_mb=None, cpu_seconds=None)()
        work.override(task_id="alone", memory_mb=None, cpu_seconds=None, isolation="fresh")()
    spec = DagSpec.from_json(d.spec().to_json())
    assert (spec.max_active_tasks, spec.run_timeout_seconds) == (4, 3600)
    t, plain, alone = spec.tasks
    assert (t.pool, t.pool_slots, t.max_active, t.depends_on_past) == ("api", 2, 3, True)
    assert (t.retry_backoff, t.retry_jitter, t.retry_max_delay_seconds) == (2, 0.5, 300)
    assert (t.on_lost, t.outlets) == ("hold", ("s3://x",))
    # A limit of the kernel stays with the process: it has one of its own
    assert t.execution == {"memory_mb": 100, "cpu_seconds": 2.5, "isolation": "fresh"}
    assert (plain.execution, alone.execution) == ({}, {"isolation": "fresh"})


# --- callbacks ------------------------------------------------------------------------------------------------


def test_callbacks_of_a_run_are_tasks() -> None:
    @task(retries=2, queue="mail")
    def tell(context: Context) -> str:
        return context.task_id

    with DAG("calls", on_failure=tell, on_success=lambda: "fine") as d:
        a()
    ok, bad = d.spec().callbacks
    assert (ok.task_id, ok.kind, ok.queue) == ("@on_success", "callback", "default")
    assert (bad.task_id, bad.retries, bad.queue) == ("@on_failure", 2, "mail")
    context = Context(dag_id="calls", run_id="1", task_id="@on_failure", logical_date=NOON)
    assert d.run_task("@on_failure", context, {}) == "@on_failure"
    assert [t.task_id for t in d.spec().tasks] == ["a"]


def test_callbacks_of_a_task_are_called_for_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []

    def tell(name: str) -> Any:
        return lambda context, error: calls.append((name, context.try_number, get_current_context().task_id, error))

    def broken(context: Context, error: str | None) -> None:
        raise RuntimeError("the callback itself")

    @task(retries=1, on_success=tell("success"), on_failure=tell("failure"), on_retry=tell("retry"))
    def work() -> None:
        pass

    with DAG("calls") as d:
        work()
        work.override(task_id="other", on_success=broken)()
    first = Context(dag_id="calls", run_id="1", task_id="work", logical_date=NOON)
    second = Context(dag_id="calls", run_id="1", task_id="work", logical_date=NOON, try_number=2)
    d.call_back(first, "success", None, retry=True)
    d.call_back(first, "failed", "boom", retry=True)
    d.call_back(first, "failed", "fatal", retry=False)
    d.call_back(second, "failed", "boom", retry=True)
    d.call_back(first, "skipped", None, retry=True)
    assert calls == [
        ("success", 1, "work", None),
        ("retry", 1, "work", "boom"),
        ("failure", 1, "work", "fatal"),
        ("failure", 2, "work", "boom"),
    ]
    d.call_back(Context(dag_id="calls", run_id="1", task_id="other", logical_date=NOON), "success", None, retry=True)
    assert "the callback itself" in capsys.readouterr().err


def test_what_is_not_worth_a_retry() -> None:
    with DAG("retries") as d:
        a.override(no_retry_on=KeyError)()
    assert d.may_retry("a", ValueError())
    assert not d.may_retry("a", KeyError())
    assert not d.may_retry("a", Fail("enough"))
