from __future__ import annotations

from pathlib import Path

import pytest

from runner.deployctl import environment
from runner.localcloud import state as localcloud
from runner.settings import RefusedError, SluiceError, UsageError


def test_an_environment_is_what_its_folder_says(tree: Path) -> None:
    env = environment.load("tiny", tree)
    assert (env.region, env.account_id) == ("us-east-1", "123456789012")
    assert env.backend("data")["key"] == "tiny/data.tfstate"
    assert env.backend("data")["use_lockfile"] == "true"
    assert env.data("data", {}) == tree.parent / ".sluice" / "terraform" / "tiny" / "data"
    assert env.data("data", {"SLUICE_TF_DATA": "/x"}) == Path("/x/tiny/data")


def test_the_tree_is_found_from_a_folder_inside_it(tree: Path) -> None:
    assert environment.find_tree(tree / "envs" / "tiny") == tree
    assert environment.find_tree(tree.parent) == tree


def test_an_unknown_environment_names_those_there_are(tree: Path) -> None:
    with pytest.raises(UsageError) as e:
        environment.load("pord", tree)
    assert (e.value.message, e.value.hint) == ("there is no environment 'pord'", "the environments are tiny")


def test_a_file_that_says_another_name_is_refused(tree: Path) -> None:
    path = tree / "envs" / "tiny" / "common.tfvars"
    path.write_text(path.read_text().replace('env = "tiny"', 'env = "prod"'))
    with pytest.raises(UsageError, match="says env = 'prod'"):
        environment.load("tiny", tree)


def test_values_are_read_with_comments_and_without_what_is_not_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "x.tfvars"
    path.write_text('a = "1" # why\n  b="2"\nc = 3\nd = ["x"]\n# e = "5"\nengines = null\nf = { x = "y" }\n')
    assert environment.read_tfvars(path) == {"a": "1", "b": "2"}
    assert environment.sets_variable([path], "f")
    assert not environment.sets_variable([path], "engines")
    assert not environment.sets_variable([path], "e")


def test_credentials_of_another_account_are_refused_naming_both(tree: Path, aws_environ: None) -> None:
    path = tree / "envs" / "tiny" / "common.tfvars"
    path.write_text(path.read_text().replace("123456789012", "999999999999"))
    env = environment.load("tiny", tree)
    with pytest.raises(RefusedError) as e:
        environment.check_account(env, environment.process_environ(env))
    assert "123456789012" in e.value.message and "999999999999" in e.value.message
    assert e.value.exit_code == 3


def test_the_state_bucket_is_made_once_and_private(tree: Path, aws_environ: None) -> None:
    env = environment.load("tiny", tree)
    child = environment.process_environ(env)
    with pytest.raises(SluiceError) as e:
        environment.check_state_bucket(env, child)
    assert e.value.hint == "run `deployctl infra bootstrap --env tiny`"

    assert environment.create_state_bucket(env, child)
    assert not environment.create_state_bucket(env, child)

    s3 = environment.client("s3", env, child)
    assert s3.get_bucket_versioning(Bucket=env.state_bucket)["Status"] == "Enabled"
    assert all(s3.get_public_access_block(Bucket=env.state_bucket)["PublicAccessBlockConfiguration"].values())
    assert "aws:SecureTransport" in s3.get_bucket_policy(Bucket=env.state_bucket)["Policy"]
    assert s3.get_bucket_encryption(Bucket=env.state_bucket)["ServerSideEncryptionConfiguration"]["Rules"]


def test_no_account_of_the_users_own_stands_in_for_a_local_cloud_that_is_not_there(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given credentials of some account, and an environment `local` without a local cloud
    monkeypatch.setenv("SLUICE_LOCAL_DIR", str(tmp_path / "cloud"))
    env = environment.Environment("local", "us-east-1", "123456789012", "bucket", tree)
    theirs = {"AWS_PROFILE": "work", "AWS_SESSION_TOKEN": "x"}
    # Then nothing goes to that account
    with pytest.raises(SluiceError, match="no local cloud in"):
        environment.process_environ(env, theirs)
    localcloud.save(localcloud.LocalState(), tmp_path / "cloud")
    with pytest.raises(SluiceError, match="has no AWS yet"):
        environment.process_environ(env, theirs)
    # And one that runs takes their place
    localcloud.update(tmp_path / "cloud", aws_endpoint="http://127.0.0.1:1")
    found = environment.process_environ(env, theirs)
    assert found["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1" and not theirs.keys() & found.keys()
