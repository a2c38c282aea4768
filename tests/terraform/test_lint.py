"""`terraform/lint.py`: what `make lint` says about the tree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import SOURCE

pytestmark = pytest.mark.terraform


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(tree / "lint.py")], capture_output=True, text=True)


def test_the_tree_is_formatted_and_every_stack_is_valid() -> None:
    done = lint(SOURCE)
    assert (done.returncode, done.stderr) == (0, "")


def test_bad_format_and_an_unknown_argument_are_found(tree: Path) -> None:
    for stack in ("data", "control", "workers"):
        shutil.rmtree(tree / "stacks" / stack)
    with (tree / "stacks" / "network" / "main.tf").open("a") as file:
        file.write('module "again" {\nsource = "../../modules/network"\nnmae = 1\n}\n')
    done = lint(tree)
    assert done.returncode == 1
    assert "  source = " in done.stderr  # how it should look
    assert 'An argument named "nmae" is not expected here' in done.stderr


def test_every_module_and_stack_has_its_four_files() -> None:
    for folder in [*SOURCE.glob("modules/*"), *SOURCE.glob("stacks/*")]:
        names = {path.name for path in folder.glob("*.tf")}
        assert names >= {"main.tf", "variables.tf", "outputs.tf", "versions.tf"}, folder


def test_no_file_names_an_endpoint() -> None:
    for path in [*SOURCE.rglob("*.tf"), *SOURCE.rglob("*.tfvars")]:
        assert not re.search(r"^\s*endpoints?\b.*[{=]|127\.0\.0\.1|localhost", path.read_text(), re.MULTILINE), path


def test_the_stacks_that_read_others_read_them_alike() -> None:
    control, workers = ((SOURCE / "stacks" / name / "state.tf").read_text() for name in ("control", "workers"))
    assert control == workers
