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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tree_is_formatted_valid_and_leaves_checkov_nothing_to_say() -> None:
    done = lint(SOURCE)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bad_format_an_unknown_argument_and_an_open_port_are_found(tree: Path) -> None:
    for stack in (tree / "stacks").iterdir():
        if stack.name != "network":
            shutil.rmtree(stack)
    with (tree / "stacks" / "network" / "main.tf").open("a") as file:
        file.write('module "again" {\nsource = "../../modules/network"\nnmae = 1\n}\n')
    users = tree / "modules" / "security-groups" / "main.tf"
    text = users.read_text()
    assert text.count("443") == 2
    users.write_text(text.replace("each.key\n", '"0.0.0.0/0"\n').replace("443", "22"))
    done = lint(tree)
    assert done.returncode == 1
    assert "  source = " in done.stderr  # how it should look
    assert 'An argument named "nmae" is not expected here' in done.stderr
    assert "CKV_AWS_24" in done.stderr  # no way in from everywhere to port 22


def test_every_skipped_check_has_a_reason() -> None:
    for path in SOURCE.rglob("*.tf"):
        for line in path.read_text().splitlines():
            if "checkov" in line:
                assert re.search(r"checkov:skip=CKV2?_AWS_\d+:.{7,}", line), f"{path}: {line}"


def test_every_module_and_stack_has_its_four_files() -> None:
    for folder in [*SOURCE.glob("modules/*"), *SOURCE.glob("stacks/*")]:
        names = {path.name for path in folder.glob("*.tf")}
        assert names >= {"main.tf", "variables.tf", "outputs.tf", "versions.tf"}, folder


def test_no_file_names_an_endpoint() -> None:
    for path in [*SOURCE.rglob("*.tf"), *SOURCE.rglob("*.tfvars")]:
        assert not re.search(r"^\s*endpoints\b.*[{=]|127\.0\.0\.1|localhost", path.read_text(), re.MULTILINE), path


def test_the_stacks_that_read_others_read_them_alike() -> None:
    control, workers = ((SOURCE / "stacks" / name / "state.tf").read_text() for name in ("control", "workers"))
    assert control == workers


def test_one_lock_pins_the_provider_for_every_platform_in_every_stack() -> None:
    locks = {path.name: (path / ".terraform.lock.hcl").read_text() for path in (SOURCE / "stacks").iterdir()}
    (lock,) = set(locks.values())
    assert re.findall(r'^provider "(.*)"', lock, re.M) == ["registry.terraform.io/hashicorp/aws"]
    (constraint,) = re.findall(r'constraints = "(.*)"', lock)
    for path in SOURCE.glob("*/*/versions.tf"):
        assert set(re.findall(r'^ +version = "(.*)"', path.read_text(), re.M)) <= {constraint}, path
    # One h1 for a package that was unpacked, and the registry's own zh for the archive of each platform.
    assert re.search(r'"h1:[\w+/]{43}="', lock) and len(re.findall(r'"zh:[0-9a-f]{64}"', lock)) >= 12


def test_no_policy_allows_whole_families_of_actions_and_every_role_can_be_bounded() -> None:
    # A key's own policy, where "*" is that key; and the denial of all that comes without TLS.
    meant = {("stacks/data/main.tf", "kms:*"), ("stacks/data/main.tf", "kms:GenerateDataKey*")}
    meant.add(("modules/bucket/main.tf", "s3:*"))
    found, roles = set(), 0
    for path in SOURCE.rglob("*.tf"):
        text, name = path.read_text(), path.relative_to(SOURCE).as_posix()
        found |= {(name, action) for action in re.findall(r'"([a-z0-9-]+:[A-Za-z]*\*[A-Za-z]*)"', text)}
        for role in re.findall(r'^resource "aws_iam_role" "\w+" \{\n(.*?)^\}', text, re.M | re.S):
            roles += 1
            assert re.search(r"permissions_boundary += var.permissions_boundary_arn", role), name
    assert found == meant
    assert roles >= 6
