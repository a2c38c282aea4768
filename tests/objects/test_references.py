from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from runner.objects import LookupFailed, Resolver, Secret
from runner.objects import references as module
from runner.objects.references import problem


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        secrets = boto3.client("secretsmanager", region_name="eu-west-1")
        secrets.create_secret(
            Name="prod/db", SecretString=json.dumps({"user": "etl", "password": "hunter22", "port": 1})
        )
        secrets.create_secret(Name="plain", SecretString="just text")
        secrets.create_secret(Name="binary", SecretBinary=b"\x00")
        ssm = boto3.client("ssm", region_name="eu-west-1")
        ssm.put_parameter(Name="/prod/key", Value="from ssm", Type="SecureString")
        yield


def test_every_kind_of_reference(aws: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORD", "from env")
    (tmp_path / "word").write_text("from file\n")
    resolver = Resolver("eu-west-1")
    assert resolver.resolve(
        {
            "env": "${env:WORD}",
            "file": f"${{file:{tmp_path}/word}}",
            "json": "${secretsmanager:prod/db#password}",
            "number": "${secretsmanager:prod/db#port}",
            "text": "${secretsmanager:plain}",
            "ssm": ["${ssm:/prod/key}"],
            "url": "postgresql://${secretsmanager:prod/db#user}:${secretsmanager:prod/db#password}@db/x",
            "secret": Secret("${env:WORD}!"),
            "literal": "$${env:WORD} and $x",
            "port": 5432,
        }
    ) == {
        "env": Secret("from env"),
        "file": Secret("from file"),
        "json": Secret("hunter22"),
        "number": Secret("1"),
        "text": Secret("just text"),
        "ssm": [Secret("from ssm")],
        "url": Secret("postgresql://etl:hunter22@db/x"),
        "secret": Secret("from env!"),
        "literal": "${env:WORD} and $x",
        "port": 5432,
    }
    assert resolver.parts({"url": "x://${secretsmanager:prod/db#user}:${secretsmanager:prod/db#password}@y"}) == {
        "etl",
        "hunter22",
    }


MISSING = {
    "env:NOT_SET": "it is not in the worker's environment",
    "file:/not/there": "No such file or directory",
    "secretsmanager:none": "ResourceNotFoundException",
    "secretsmanager:prod/db#nothing": "no JSON object with a key 'nothing'",
    "secretsmanager:plain#key": "no JSON object with a key 'key'",
    "secretsmanager:binary": "the secret is binary",
    "ssm:/none": "ParameterNotFound",
    "vault:x": "is no reference",
}


def test_a_secret_that_is_not_there(aws: None) -> None:
    resolver = Resolver("eu-west-1")
    for reference, why in MISSING.items():
        with pytest.raises(LookupFailed) as caught:
            resolver.resolve({"password": f"${{{reference}}}"})
        assert f"${{{reference}}}" in caught.value.message and why in caught.value.message


def test_aws_is_asked_once_a_minute_and_not_once_a_task(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver("eu-west-1")
    assert resolver.resolve("${secretsmanager:plain}") == Secret("just text")
    boto3.client("secretsmanager", region_name="eu-west-1").put_secret_value(SecretId="plain", SecretString="rotated")
    assert resolver.resolve("${secretsmanager:plain}") == Secret("just text")
    now = module.time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.CACHE_SECONDS + 1)
    assert resolver.resolve("${secretsmanager:plain}") == Secret("rotated")


@pytest.mark.parametrize("text", ["${}", "${env:}", "${nothing}", "${vault:x}", "a ${ssm:relative} b"])
def test_what_is_no_reference(text: str) -> None:
    assert problem(text)


@pytest.mark.parametrize("text", ["", "$5", "$${anything}", "${env:A}${file:/b}", "{}"])
def test_what_is_fine(text: str) -> None:
    assert problem(text) is None
