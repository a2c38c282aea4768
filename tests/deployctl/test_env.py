"""`deployctl env`: from nothing to an environment and back, on the throw-away tree."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from runner.deployctl import env, environment, infra, main
from runner.settings import RefusedError, UsageError

from .conftest import ACCOUNT

pytestmark = pytest.mark.terraform


@pytest.fixture
def free(tree: Path, aws_environ: None) -> Path:
    """The tree and an account in which there is nothing yet; the common values are those of the test's environment."""
    if shutil.which("terraform") is None:
        pytest.skip("no terraform on PATH")
    (tree / "envs" / "tiny" / "network.tfvars").write_text("size = 1\n")
    return tree


def test_one_command_makes_an_environment_from_nothing_and_one_more_is_refused(free: Path, capsys: Any) -> None:
    # When an environment is made after the model of another
    assert main.run(["env", "create", "fresh1", "--from", "tiny", "--yes"]) == 0

    # Then it has values of its own, in the account of the credentials, and all stacks stand
    values = environment.read_tfvars(free / "envs" / "fresh1" / "common.tfvars")
    bucket = f"sluice-fresh1-state-{ACCOUNT}"
    assert values == {"env": "fresh1", "region": "us-east-1", "account_id": ACCOUNT, "state_bucket": bucket}
    assert set(infra.outputs("fresh1")) == {"network", "data", "control", "workers"}
    assert infra.outputs("fresh1", ["network"])["network"]["size"] == 1
    assert [p.name for p in (free / "envs").iterdir() if p.name.startswith(".")] == []

    # And it is not made twice
    capsys.readouterr()
    assert main.run(["env", "create", "fresh1", "--yes"]) == 3
    assert "the environment fresh1 exists" in capsys.readouterr().err

    # And it is not removed while anything stands in it, and then leaves nothing
    assert main.run(["env", "delete", "fresh1", "--yes"]) == 3
    assert "still stand in fresh1" in capsys.readouterr().err
    infra.destroy("fresh1")
    assert main.run(["env", "delete", "fresh1", "--yes"]) == 0
    found = environment.load("fresh1", free)
    assert not environment.state_bucket_exists(found, environment.process_environ(found))


def test_a_creation_that_failed_goes_on_where_it_was(free: Path, capsys: Any) -> None:
    # Given a creation that fails at its first stack
    assert main.run(["env", "create", "fresh2", "--from", "tiny", "--yes", "--var", "broken=true"]) == 1
    assert "`deployctl env create fresh2` goes on" in capsys.readouterr().err
    # When it is run again without the mistake
    assert main.run(["env", "create", "fresh2", "--yes"]) == 0
    # Then it is whole
    assert set(infra.outputs("fresh2")) == {"network", "data", "control", "workers"}
    assert main.run(["env", "create", "fresh2", "--yes"]) == 3


def test_a_folder_somebody_wrote_is_taken_as_it_is(free: Path) -> None:
    found = env.begin("tiny", tree=free)
    assert environment.state_bucket_exists(found, environment.process_environ(found))
    env.finish(found)
    with pytest.raises(RefusedError, match="the environment tiny exists"):
        env.begin("tiny", tree=free)
    with pytest.raises(UsageError, match="says what the environment is"):
        env.begin("tiny", region="eu-west-1", tree=free)


@pytest.mark.parametrize("name", ["Prod", "a", "a-b", "9x", "thirteen13chr"])
def test_a_name_the_stacks_would_refuse_is_refused_before_anything_is_written(free: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be named"):
        env.begin(name, template="tiny", tree=free)
    assert [p.name for p in (free / "envs").iterdir()] == ["tiny"]


def test_an_account_the_credentials_are_not_of_is_refused_before_anything_is_made(free: Path) -> None:
    with pytest.raises(RefusedError, match="999999999999"):
        env.begin("fresh3", template="tiny", account_id="999999999999", tree=free)


def test_the_list_names_account_region_and_stacks(free: Path, capsys: Any) -> None:
    assert main.run(["env", "list", "--json"]) == 0
    assert '"name": "tiny"' in capsys.readouterr().out
