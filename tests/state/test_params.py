"""Params: declared with JSON Schema, checked at push and when a run is wished for, filled up with defaults."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from runner.authoring import DAG, Asset, AuthoringError, Context, Param, dag, task
from runner.settings import UsageError
from runner.state import bundles, params
from tests.state.conftest import World

N = Param(3, type="integer", minimum=1)


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"n": Param(0, type="integer", minimum=1)}, "default of param 'n': 0 is less than the minimum of 1"),
        ({"n": Param("x", type="integer")}, "default of param 'n': 'x' is not of type 'integer'"),
        ({"n": Param(1, type="int")}, "param 'n': type: 'int' is not valid"),
        ({"n": Param(1, minimun=1)}, "param 'n': JSON Schema has no keyword 'minimun'"),
        ({"n": {1, 2}}, "param 'n' must be JSON"),
        (["n"], "params must be a dict"),
    ],
)
def test_what_cannot_be_is_said_at_push(declared: Any, says: str) -> None:
    with pytest.raises(AuthoringError, match=says):
        DAG("d", params=declared)


@pytest.mark.parametrize("schedule", ["@daily", Asset("a")])
def test_a_schedule_needs_defaults(schedule: Any) -> None:
    with pytest.raises(AuthoringError, match="param 'day' needs a default, or the DAG no schedule"):
        DAG("d", schedule=schedule, params={"day": Param(type="string")})


def pushed(world: World, declared: dict[str, Any] | None) -> None:
    @task
    def t() -> None: ...

    with DAG("d", params=declared) as d:
        t()
    with world.engine.begin() as c:
        bundles.register_and_activate(c, version="v", name="b", url="", size=0, specs=[d.spec()], who="test")


def test_every_run_has_the_defaults(world: World) -> None:
    pushed(world, {"n": N, "day": "x", "o": {"a": None}})
    world.do(lambda c: params.check(c, "d", {"n": 5}))
    run = world.run()
    assert world.one("SELECT params FROM dag_run WHERE id = :r", r=run) == {"n": 3, "day": "x", "o": {"a": None}}
    from runner.state import transitions

    later = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
    run = world.do(lambda c: transitions.create_run(c, "d", later, params={"n": 5}))
    assert world.one("SELECT params FROM dag_run WHERE id = :r", r=run) == {"n": 5, "day": "x", "o": {"a": None}}


def test_each_problem_is_a_line(world: World) -> None:
    pushed(world, {"n": N, "day": Param(type="string"), "o": Param({}, properties={"k": {"type": "null"}})})
    with pytest.raises(UsageError) as e:
        world.do(lambda c: params.check(c, "d", {"n": "many", "typo": 1, "o": {"k": 1}}))
    assert e.value.message.splitlines() == [
        "DAG 'd': param 'typo': the DAG has none of that name, but n, o, day",
        "param 'day': is required",
        "param 'n': 'many' is not of type 'integer'",
        "param 'o.k': 1 is not of type 'null'",
    ]


def test_a_dag_that_declares_none_takes_anything(world: World) -> None:
    pushed(world, None)
    world.do(lambda c: params.check(c, "d", {"whatever": 1}))


def test_in_dag_test_the_same_holds() -> None:
    @task
    def show(context: Context) -> Any:
        return context.params

    @dag(params={"n": N})
    def d() -> None:
        show()

    assert d().test(params={}) == {"show": {"n": 3}}
    with pytest.raises(ValueError, match="0 is less than the minimum"):
        d().test(params={"n": 0})
