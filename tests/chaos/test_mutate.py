"""Each safety that `make chaos` takes away is still where it is looked for."""

import pytest

from runner.state import transitions

from .sabotage import mutate


@pytest.mark.parametrize("name", [*mutate.CONDITIONS, *mutate.DUTIES])
def test_a_safety_can_be_taken_away_and_put_back(name):
    before = {module.__name__: dict(vars(module)) for module in mutate.modules()}
    taken = mutate.mutate(name)
    try:
        assert taken
        for module, attribute, value in taken:
            assert getattr(module, attribute) is not value
    finally:
        mutate.restore(taken)
    assert {module.__name__: dict(vars(module)) for module in mutate.modules()} == before


def test_a_safety_that_is_not_found_is_an_error(monkeypatch):
    monkeypatch.setitem(mutate.CONDITIONS, "old", ("UPDATE", "no such condition"))
    with pytest.raises(RuntimeError, match="no such condition"):
        mutate.mutate("old")


def test_the_functions_of_transitions_that_scenarios_use_are_there():
    for name in ("create_run", "dispatch", "queued", "claim", "finish", "interrupt_leases", "Message"):
        assert callable(getattr(transitions, name))
