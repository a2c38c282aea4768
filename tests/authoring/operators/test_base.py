"""An operator is a task as a class: options, dependencies, templates, and the errors of each."""

import datetime as dt
import inspect
import subprocess
import sys
from typing import Any

import pytest

from runner.authoring import DAG, AuthoringError, Connection, Context, connection, dag, task, variable
from runner.authoring.operators import Operator, PythonOperator
from runner.authoring.templates import TemplateError

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


class Greet(Operator):
    """An author's own operator."""

    template_fields = ("greeting", "names")

    def __init__(self, task_id: str, *, greeting: Any, names: Any = (), **options: Any) -> None:
        super().__init__(task_id, **options)
        self.greeting = greeting
        self.names = names

    def execute(self, context: Context) -> Any:
        return [self.greeting, self.names, context.task_id]


@task
def name() -> str:
    return "{{ bob }}"


@task
def join(parts: list[str]) -> str:
    return " ".join(map(str, parts))


def test_an_operator_is_a_task_like_any_other() -> None:
    # Given a DAG of functions and operators, tied by values and by arrows
    @dag
    def greetings() -> None:
        first = Greet("first", greeting="{{ logical_date | ds }}", names=[name(), "{{ params.who }}"], queue="cpu")
        second = Greet("second", greeting=first, retries=2)
        [first, second] >> join.override(task_id="after")(["x"])
        Greet("last", greeting="late") << second
        join(second)

    made = greetings()
    specs = {t.task_id: t for t in made.spec().tasks}

    # Then it has the edges and the options, and each saw its values; what another task returned is no template
    assert (specs["first"].queue, specs["first"].inputs) == ("cpu", ("name",))
    assert (specs["second"].retries, specs["second"].inputs) == (2, ("first",))
    assert specs["after"].upstream == ("first", "second")
    assert specs["last"].upstream == ("second",)
    results = made.test(NOON, params={"who": "ann"})
    assert results["first"] == ["2026-03-01", ["{{ bob }}", "ann"], "first"]
    assert results["second"] == [results["first"], [], "second"]
    assert results["join"] == f"{results['first']} [] second"


def test_a_run_leaves_the_operator_as_it_was() -> None:
    with DAG("again") as d:
        op = Greet("g", greeting="{{ logical_date | ds }}", names=name())
    assert [d.test(NOON.replace(day=n))["g"][0] for n in (1, 2)] == ["2026-03-01", "2026-03-02"]
    assert op.greeting == "{{ logical_date | ds }}"


def test_outside_of_a_dag_it_is_a_plain_object(context: Context) -> None:
    op = Greet("g", greeting="hello {{ params.who }}", names={"all": ["{{ run_id }}"]})
    assert op.execute(context)[0] == "hello {{ params.who }}"
    assert op.render(context).execute(context) == ["hello ann", {"all": ["7"]}, "t"]
    with pytest.raises(AuthoringError, match="'g' was made outside of a DAG"):
        op >> op


def test_a_python_operator_calls_its_function(context: Context) -> None:
    def stamp(what: str, context: Context, *, who: str) -> list[str]:
        return [what, who, context.run_id]

    assert PythonOperator("p", function=stamp, args=["a"], kwargs={"who": "b"}).execute(context) == ["a", "b", "7"]
    with DAG("python") as d:
        PythonOperator("p", function=stamp, kwargs={"what": name(), "who": "{{ task_id }}"})
    assert d.test()["p"] == ["{{ bob }}", "p", "test"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ interval_start | ds }} {{ interval_end | ts }}", "2026-02-28 2026-03-01T12:00:00+00:00"),
        ("{{ logical_date | ds_nodash }}_{{ logical_date | ts_nodash }}", "20260301_20260301T120000"),
        ("{{ logical_date | plus(days=-1, hours=2) | ts }}", "2026-02-28T14:00:00+00:00"),
        ("{{ logical_date | in_zone('Asia/Tokyo') | ts }}", "2026-03-01T21:00:00+09:00"),
        ("{{ logical_date.strftime('%Y/%m') }}\n", "2026/03\n"),
        ("{% for n in range(2) %}{{ n }}{% endfor %}", "01"),
        ("${#array[@]} {x} {{ '{' }}", "${#array[@]} {x} {"),
        ("{{ variable('v', 'none') }} {{ connection('c').host }}", "none h"),
    ],
)
def test_what_templates_can_say(context: Context, monkeypatch: pytest.MonkeyPatch, text: str, value: str) -> None:
    monkeypatch.setenv("SLUICE_CONN_C", "http://h")
    assert Greet("g", greeting=text).render(context).greeting == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ logical_date | dss }}", "task 'g', greeting: No filter named 'dss'"),
        ("{{ ds }}", "unknown name ds; there are dag_id"),
        ("{{ oh", "task 'g', greeting: unexpected end of template"),
        (["x", {"a": "{% if %}"}], "task 'g', greeting: Expected an expression"),
    ],
)
def test_a_wrong_template_is_found_when_the_dag_is_read(text: Any, message: str) -> None:
    with pytest.raises(AuthoringError, match=message) as e:
        Greet("g", greeting=text)
    assert e.value.place.file == __file__


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ params.nobody }}", "task 'g', greeting: .*has no attribute 'nobody' in '{{ params.nobody }}'"),
        ("{{ run_id | ds }}", "a time is needed, not '7'"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ params.update(x=1) }}", "is not safely callable|unsafe"),
    ],
)
def test_what_has_no_value_or_is_not_safe_fails_the_task(context: Context, text: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        Greet("g", greeting=text).render(context)


class Forgetful(Operator):
    def __init__(self, task_id: str) -> None:
        pass

    def execute(self, context: Context) -> None: ...


class Misnamed(Operator):
    template_fields = ("greting",)

    def execute(self, context: Context) -> None: ...


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Greet("g"), "Greet: missing a required argument: 'greeting'"),
        (
            lambda: Greet("g", greeting="", retrys=1),
            "Greet has no option retrys; it has task_id, greeting, names, queue",
        ),
        (lambda: Greet("../g", greeting=""), "task_id '../g'"),
        (lambda: Greet("g", greeting="", retries=-1), "retries must be"),
        (lambda: Forgetful("f"), r"must call super\(\).__init__"),
        (lambda: Misnamed("m"), "template_fields names 'greting', which __init__ never set"),
    ],
)
def test_a_wrong_operator_is_named_at_its_line(make: Any, message: str) -> None:
    with pytest.raises(AuthoringError, match=message) as e:
        make()
    assert e.value.place.file == __file__


def test_an_id_that_is_taken_is_an_error_at_its_line() -> None:
    with DAG("twice"):
        Greet("g", greeting="a")
        with pytest.raises(AuthoringError, match="already has a task 'g'") as e:
            Greet("g", greeting="b")
    frame = inspect.currentframe()
    assert frame is not None and e.value.place == (__file__, frame.f_lineno - 2)


def test_a_test_gives_connections_and_variables() -> None:
    @task
    def look() -> list[Any]:
        return [connection("db").url(), connection("own").host, variable("limit")]

    with DAG("lookups") as d:
        look()
    given: dict[str, Any] = {"db": "postgresql://u:p@h:1/d", "own": Connection(type="http", host="x")}
    assert d.test(connections=given, variables={"limit": 3})["look"] == ["postgresql+psycopg://u:p@h:1/d", "x", 3]
    with pytest.raises(LookupError, match=r"no connection 'db'.*set SLUICE_CONN_DB"):
        d.test(variables={"limit": 3})


def test_importing_what_an_author_imports_stays_light() -> None:
    heavy = ["sqlalchemy", "psycopg", "httpx", "docker", "apprise", "jinja2", "obstore", "pydantic", "boto3"]
    code = f"import sys, runner.authoring.operators; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
