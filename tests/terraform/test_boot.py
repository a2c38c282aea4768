"""The program in a machine's user data: it fetches the release, or says why not and gives the instance back."""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import hashlib
import importlib.util
import io
import json
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from runner.rollout.sign import SecretKey, sign

SOURCE = Path(__file__).parents[2] / "terraform/modules/boot/boot.py"
USER_DATA_MAX_BYTES = 16_384  # EC2's


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("boot", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "NODE_ENV", tmp_path / "node.env")
    monkeypatch.setattr(module, "RELEASES", tmp_path / "releases")
    monkeypatch.setattr(module, "RUNNER", tmp_path / "runner")
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return module


class Metadata:
    """What the metadata service would say."""

    def __init__(self, release: str = "abc123") -> None:
        self.release = release

    def get(self, path: str) -> str:
        return {"instance-id": "i-1", "tags/instance/Release": self.release}[path]


class Aws:
    """What a boot asks of AWS, written down."""

    def __init__(self, archive: bytes = b"", broken: tuple[str, ...] = ()) -> None:
        self.archive = archive
        self.broken = broken
        self.asked: list[tuple[str, ...]] = []

    def fetch(self, bucket: str, key: str) -> bytes:
        self.asked.append(("fetch", bucket, key))
        if not self.archive:
            raise OSError("HTTP Error 404: Not Found")
        return self.archive

    def tag(self, *args: str) -> None:
        self._note("tag", *args)

    def abandon(self, *args: str) -> None:
        self._note("abandon", *args)

    def _note(self, *args: str) -> None:
        if args[0] in self.broken:
            raise OSError("AWS is away")
        self.asked.append(args)


def release(script: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, text, mode in (("manifest.json", "{}", 0o644), ("scripts/bootstrap", script, 0o755)):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text), mode
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


SETTINGS = {"SLUICE_ARTIFACTS_URL": "s3://bucket/some/prefix", "SLUICE_GROUP": "group"}


def run(boot: ModuleType, monkeypatch: pytest.MonkeyPatch, metadata: Metadata, aws: Aws) -> int:
    boot.NODE_ENV.write_text("AWS_REGION=r\n" + "".join(f"{k}={v}\n" for k, v in SETTINGS.items()))
    monkeypatch.setattr(boot, "Metadata", lambda url: metadata)
    monkeypatch.setattr(metadata, "credentials", dict, raising=False)
    monkeypatch.setattr(boot, "Aws", lambda region, credentials: aws)
    return int(boot.main())


@pytest.mark.parametrize(
    ("method", "url", "body", "service"),
    [
        ("GET", "https://s3.us-east-1.amazonaws.com/bucket/releases/abc.tar.gz", b"", "s3"),
        (
            "POST",
            "https://autoscaling.us-east-1.amazonaws.com/",
            b"Action=CompleteLifecycleAction&X=a+b%2F",
            "autoscaling",
        ),
    ],
)
@pytest.mark.parametrize("token", ["", "a-token=="])
def test_a_request_is_signed_as_boto_signs_it(
    boot: ModuleType, monkeypatch: pytest.MonkeyPatch, method: str, url: str, body: bytes, service: str, token: str
) -> None:
    # Given one request, signed by botocore at one instant
    now = dt.datetime(2026, 5, 4, 3, 2, 1, tzinfo=dt.UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now.replace(tzinfo=None))
    headers = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"} if body else {}
    # S3 wants the digest as a header, and botocore signs it there by another class
    theirs = AWSRequest(method, url, {**headers, "x-amz-content-sha256": hashlib.sha256(body).hexdigest()}, body)
    SigV4Auth(Credentials("id", "secret", token or None), service, "us-east-1").add_auth(theirs)
    # When we sign it, then the signature is the same
    credentials = {"AccessKeyId": "id", "SecretAccessKey": "secret", "Token": token}
    ours = boot.sign(method, url, body, headers, service, "us-east-1", credentials, now)
    assert ours["authorization"] == theirs.headers["Authorization"]


def test_a_boot_fetches_the_tagged_release_and_hands_over(
    boot: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    aws = Aws(release("#!/bin/sh\necho it runs in $(dirname $0)\n"))
    assert run(boot, monkeypatch, Metadata(), aws) == 0
    assert aws.asked == [("fetch", "bucket", "some/prefix/releases/abc123.tar.gz")]
    assert f"it runs in {tmp_path}/releases/abc123/scripts" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("metadata", "archive", "reason"),
    [
        (Metadata(""), b"", "the tag Release: it is empty"),
        (Metadata("../../x"), b"", "the tag Release says '../../x', which is no release id"),
        (Metadata(), b"", "release abc123: HTTP Error 404: Not Found"),
        (Metadata(), b"half an archive", "the release cannot be unpacked: not a gzip file"),
        (Metadata(), release("#!/bin/sh\necho error: no wheel; exit 3"), "scripts/bootstrap: exit 3: error: no wheel"),
    ],
)
def test_a_boot_that_fails_says_so_and_gives_the_instance_back(
    boot: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    metadata: Metadata,
    archive: bytes,
    reason: str,
) -> None:
    aws = Aws(archive)
    assert run(boot, monkeypatch, metadata, aws) == 1
    assert aws.asked[-2:] == [("tag", "i-1", "Boot", f"failed: {reason}"), ("abandon", "group", "launch", "i-1")]
    assert f"error: boot: {reason}" in capfd.readouterr().out


KEY, OTHER = SecretKey.generate(), SecretKey.generate()


class Signed(Aws):
    """A release in the artifacts, with a manifest that `key` signed; `lost` and `changed` objects by their ending."""

    def __init__(self, key: SecretKey = KEY, lost: str = "-", changed: str = "-", **told: Any) -> None:
        super().__init__(release("#!/bin/sh\n"))
        facts = {"id": "abc123", "archive": {"sha256": hashlib.sha256(self.archive).hexdigest()}, **told}
        self.objects = {".tar.gz": self.archive, ".json": json.dumps(facts).encode()}
        self.objects[".json.minisig"] = sign(self.objects[".json"], key, "sluice release abc123").encode()
        if changed in self.objects:
            self.objects[changed] += b" "
        self.objects.pop(lost, None)

    def fetch(self, bucket: str, key: str) -> bytes:
        self.asked.append(("fetch", bucket, key))
        ending = key.removeprefix("some/prefix/releases/abc123")
        if ending not in self.objects:
            raise OSError("HTTP Error 403: Forbidden")
        return self.objects[ending]


@pytest.fixture
def trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "SLUICE_RELEASE_KEY", f"{SecretKey.generate().public},{KEY.public}")


@pytest.mark.usefixtures("trust")
def test_a_signed_release_boots_where_a_key_is_asked_for(
    boot: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(boot, monkeypatch, Metadata(), Signed()) == 0
    assert "release abc123 is signed by a trusted key" in capfd.readouterr().out


@pytest.mark.usefixtures("trust")
@pytest.mark.parametrize(
    ("aws", "reason"),
    [
        (Signed(lost=".json.minisig"), "its signature is not there (HTTP Error 403: Forbidden)"),
        (Signed(lost=".json"), "its signature is not there (HTTP Error 403: Forbidden)"),
        (Signed(OTHER), f"signed with key {OTHER.public.name}, which is not trusted"),
        (Signed(changed=".json"), "its signature is not good"),
        (Signed(changed=".tar.gz"), "its archive is not the one that was signed"),
        (Signed(id="abc122"), "its archive is not the one that was signed"),
    ],
    ids=["no signature", "no manifest", "another key", "another manifest", "another archive", "another release"],
)
def test_nothing_of_a_release_is_unpacked_that_nobody_answers_for(
    boot: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, aws: Signed, reason: str
) -> None:
    assert run(boot, monkeypatch, Metadata(), aws) == 1
    assert aws.asked[-2] == ("tag", "i-1", "Boot", f"failed: release abc123 is refused: {reason}")
    assert not (tmp_path / "releases").exists()


def test_an_instance_is_given_back_also_where_nobody_can_be_told(
    boot: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a release that has come as far as its programs, on a machine that may not write tags
    boot.RUNNER.write_text("#!/bin/sh\nexit 1\n")
    boot.RUNNER.chmod(0o755)
    aws = Aws(release("#!/bin/sh\nexit 1"), broken=("tag",))
    assert run(boot, monkeypatch, Metadata(), aws) == 1
    assert aws.asked[-1] == ("abandon", "group", "launch", "i-1")


def test_the_database_is_told_by_the_release_itself(
    boot: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    boot.RUNNER.write_text(f'#!/bin/sh\necho "$SLUICE_NODE_ID|$SLUICE_GROUP|$*" > {tmp_path}/told\n')
    boot.RUNNER.chmod(0o755)
    assert run(boot, monkeypatch, Metadata(), Aws(release("#!/bin/sh\necho out of memory; exit 1"))) == 1
    assert (tmp_path / "told").read_text().strip() == "i-1|group|node failed scripts/bootstrap: exit 1: out of memory"


def test_user_data_stays_well_below_what_ec2_takes() -> None:
    packed = base64.b64encode(gzip.compress(SOURCE.read_bytes(), 9))  # as modules/boot writes it
    assert len(packed) < USER_DATA_MAX_BYTES / 2  # the rest is for node.env


def test_it_is_python_of_the_oldest_image() -> None:
    # Amazon Linux 2023 has 3.9
    compile(SOURCE.read_text(), str(SOURCE), "exec", dont_inherit=True)
    import ast

    ast.parse(SOURCE.read_text(), feature_version=(3, 9))
    json.dumps({})
