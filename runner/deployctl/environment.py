"""An environment: what `terraform/envs/<env>/` says about it, whose credentials it takes, and its state bucket."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import runner
from runner.deployctl import stacks as known_stacks
from runner.deployctl import statefile
from runner.deployctl.statefile import Resource
from runner.localcloud import state as localcloud
from runner.settings import RefusedError, SluiceError, UsageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import BucketLocationConstraintType

_COMMON = "common.tfvars"
_NEW_ENVIRONMENT = "000000000000"  # what a copied common.tfvars has until somebody fills it in
_S3_CALLS_WITHOUT_REGION = "us-east-1"


class NothingYetError(SluiceError):
    """The environment has never been up: no node, or a database without a schema."""


@dataclass(frozen=True)
class Environment:
    """One environment of the Terraform tree."""

    name: str
    region: str
    account_id: str
    state_bucket: str
    tree: Path  # the `terraform/` folder

    def source(self, stack: str) -> Path:
        """The folder of a stack's code. Raises UsageError if the tree has no such stack."""
        path = self.tree / "stacks" / stack
        if not path.is_dir():
            raise UsageError(f"{path} does not exist", f"{self.tree} is not a whole tree of this release")
        return path

    def data(self, stack: str, environ: Mapping[str, str]) -> Path:
        """Where terraform keeps what it needs between runs: outside the source, one folder a stack and environment."""
        base = Path(environ.get("SLUICE_TF_DATA") or self.tree.parent / ".sluice" / "terraform")
        return base.absolute() / self.name / stack

    def var_files(self, stack: str) -> list[Path]:
        """The values of this environment for a stack: the common ones, then its own."""
        folder = self.tree / "envs" / self.name
        return [p for p in (folder / _COMMON, folder / f"{stack}.tfvars") if p.is_file()]

    def backend(self, stack: str) -> dict[str, str]:
        """Where the state of a stack is, as `-backend-config` wants it. The key is the path."""
        return {
            "bucket": self.state_bucket,
            "key": self.state_key(stack),
            "region": self.region,
            "use_lockfile": "true",
        }

    def stacks(self) -> list[str]:
        """The stacks this environment is made of: the core ones, and those it has a .tfvars file for."""
        folder = self.tree / "envs" / self.name
        return [n for n in known_stacks.graph() if n in known_stacks.CORE or (folder / f"{n}.tfvars").is_file()]

    def state_key(self, stack: str) -> str:
        """The object that holds a stack's state."""
        return f"{self.name}/{stack}.tfstate"


def find_tree(start: Path | None = None) -> Path:
    """The `terraform/` folder: from the current directory upwards, else beside the package in a checkout.

    Raises UsageError if there is none.
    """
    start = (start or Path.cwd()).absolute()
    beside_package = Path(runner.__file__).resolve().parent.parent
    for folder in (start, *start.parents, beside_package):
        for tree in (folder / "terraform", folder):
            if (tree / "stacks").is_dir() and (tree / "envs").is_dir():
                return tree
    raise UsageError(f"no terraform/ folder in {start} or above", "run this inside a checkout")


def load(name: str, tree: Path | None = None) -> Environment:
    """Read an environment. Raises UsageError if it is not there or misses what every environment says."""
    tree = tree or find_tree()
    known = sorted(p.parent.name for p in (tree / "envs").glob(f"*/{_COMMON}"))
    if name not in known:
        raise UsageError(
            f"there is no environment {name!r}",
            f"the environments are {', '.join(known)}" if known else f"{tree / 'envs'} has none",
        )
    path = tree / "envs" / name / _COMMON
    values = read_tfvars(path)
    for needed in ("region", "account_id"):
        if not values.get(needed):
            raise UsageError(f'{path} does not set {needed} = "…"', "each environment names its account and region")
    if values.get("env", name) != name:
        raise UsageError(f"{path} says env = {values['env']!r}", f"it must be {name!r}, as its folder")
    account = values["account_id"]
    bucket = values.get("state_bucket") or f"sluice-{name}-state-{account}"
    return Environment(name, values["region"], account, bucket, tree)


def read_tfvars(path: Path) -> dict[str, str]:
    """The plain text values of a .tfvars file (`name = "value"`); other kinds of values are left out."""
    found = re.findall(r'^[ \t]*(\w+)[ \t]*=[ \t]*"([^"\n$]*)"[ \t]*(?:(?:#|//).*)?$', path.read_text(), re.MULTILINE)
    return dict(found)


def sets_variable(paths: Iterable[Path], name: str) -> bool:
    """Whether one of these .tfvars files gives a variable a value other than null."""
    pattern = re.compile(rf"^[ \t]*{re.escape(name)}[ \t]*=[ \t]*(?!null\b)\S", re.MULTILINE)
    return any(pattern.search(p.read_text()) for p in paths)


def declared_variables(source: Path) -> set[str]:
    """Names of the variables a stack declares."""
    return {
        name
        for path in source.glob("*.tf")
        for name in re.findall(r'^variable\s+"(\w+)"', path.read_text(), re.MULTILINE)
    }


def process_environ(env: Environment, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What AWS clients and terraform run with: the caller's environment, and the local cloud's for its own.

    Only the environment tells AWS from the local cloud, so one that is set by hand is left as it is. Raises
    SluiceError if the local cloud is meant and there is none: no account of the user's own stands in for it.
    """
    out = dict(os.environ if environ is None else environ)
    if env.name == localcloud.ENV and "AWS_ENDPOINT_URL" not in out:
        found = localcloud.load()
        if not found.aws_endpoint:
            raise SluiceError("the local cloud has no AWS yet", "run `deployctl local up`")
        out |= {k: v for k, v in found.environment().items() if k.startswith("AWS_")}
        out.pop("AWS_PROFILE", None)
        out.pop("AWS_SESSION_TOKEN", None)
    out["AWS_REGION"] = out["AWS_DEFAULT_REGION"] = env.region
    return out


def local_variables(env: Environment) -> dict[str, Any]:
    """The variables that the running local cloud fills in: its engines stand in for the data stack's endpoints."""
    found = localcloud.find() if env.name == localcloud.ENV else None
    if found is None:
        return {}
    out: dict[str, Any] = {}
    if found.database_url and found.broker_url:
        out["engines"] = {"database_url": found.database_url, "broker_url": found.broker_url}
    if found.release:
        out["release"] = found.release
    return out


def client(service: str, env: Environment, environ: Mapping[str, str]) -> Any:
    """A boto3 client that sees `environ` where the process's own environment may differ."""
    import boto3
    from botocore.config import Config

    keys: dict[str, Any] = {}
    if environ.get("AWS_ENDPOINT_URL"):
        keys["endpoint_url"] = environ["AWS_ENDPOINT_URL"]
    if environ.get("AWS_ACCESS_KEY_ID"):
        keys |= {
            "aws_access_key_id": environ["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": environ.get("AWS_SECRET_ACCESS_KEY"),
            "aws_session_token": environ.get("AWS_SESSION_TOKEN"),
        }
    session: Any = boto3.Session(profile_name=environ.get("AWS_PROFILE") if not keys else None)
    retries = Config(retries={"mode": "standard", "max_attempts": 3}, connect_timeout=5, read_timeout=20)
    return session.client(service, region_name=env.region, config=retries, **keys)


def check_account(env: Environment, environ: Mapping[str, str]) -> None:
    """Raise RefusedError unless the credentials in force belong to the environment's account."""
    account = client("sts", env, environ).get_caller_identity()["Account"]
    if account == env.account_id:
        return
    path = env.tree / "envs" / env.name / _COMMON
    if env.account_id == _NEW_ENVIRONMENT:
        raise RefusedError(
            f"{path} still has the account {_NEW_ENVIRONMENT}; these credentials are of account {account}",
            f"if {env.name} belongs there, write {account} into that file",
        )
    raise RefusedError(
        f"these credentials are of account {account}, but {env.name} belongs to account {env.account_id}",
        f"switch AWS_PROFILE, or correct account_id in {path}",
    )


def check_state_bucket(env: Environment, environ: Mapping[str, str]) -> None:
    """Raise SluiceError unless the state bucket is there and ours."""
    if not _bucket_exists(client("s3", env, environ), env):
        raise SluiceError(
            f"the state bucket {env.state_bucket} does not exist",
            f"run `deployctl infra bootstrap --env {env.name}`",
        )


def create_state_bucket(env: Environment, environ: Mapping[str, str]) -> bool:
    """Create the state bucket: versioned, encrypted, private, TLS only. False if it was there; sets all the same."""
    s3: S3Client = client("s3", env, environ)
    created = False
    if not _bucket_exists(s3, env):
        if env.region == _S3_CALLS_WITHOUT_REGION:
            s3.create_bucket(Bucket=env.state_bucket)
        else:
            where: BucketLocationConstraintType = env.region  # type: ignore[assignment]  # any region's name
            s3.create_bucket(Bucket=env.state_bucket, CreateBucketConfiguration={"LocationConstraint": where})
        s3.get_waiter("bucket_exists").wait(Bucket=env.state_bucket)
        created = True
    s3.put_public_access_block(
        Bucket=env.state_bucket,
        PublicAccessBlockConfiguration={
            "BlockPublicAcls": True,
            "IgnorePublicAcls": True,
            "BlockPublicPolicy": True,
            "RestrictPublicBuckets": True,
        },
    )
    s3.put_bucket_versioning(Bucket=env.state_bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put_bucket_encryption(
        Bucket=env.state_bucket,
        ServerSideEncryptionConfiguration={
            "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
        },
    )
    arn = f"arn:{s3.meta.partition}:s3:::{env.state_bucket}"
    s3.put_bucket_policy(Bucket=env.state_bucket, Policy=json.dumps(_tls_only(arn)))
    return created


def states(env: Environment, stacks: Iterable[str], environ: Mapping[str, str]) -> dict[str, list[Resource]]:
    """The stacks that have a state, with the resources in it (none: destroyed again)."""
    s3 = client("s3", env, environ)
    found = {stack: _state(s3, env, stack) for stack in stacks}
    return {stack: statefile.resources(document) for stack, document in found.items() if document is not None}


def outputs(env: Environment, stack: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The outputs of an applied stack, read from its state; none if it is not applied."""
    return statefile.outputs(_state(client("s3", env, environ), env, stack) or {})


def _state(s3: S3Client, env: Environment, stack: str) -> dict[str, Any] | None:
    """The state document of a stack, None if there is none."""
    from botocore.exceptions import ClientError

    try:
        found = s3.get_object(Bucket=env.state_bucket, Key=env.state_key(stack))
    except ClientError as e:
        if e.response.get("Error", {}).get("Code") in ("NoSuchKey", "NoSuchBucket", "404"):
            return None
        raise
    document: dict[str, Any] = json.loads(found["Body"].read())
    return document


def state_bucket_exists(env: Environment, environ: Mapping[str, str]) -> bool:
    """Whether the state bucket is there. Raises SluiceError if it is somebody else's."""
    return _bucket_exists(client("s3", env, environ), env)


def delete_state_bucket(env: Environment, environ: Mapping[str, str]) -> None:
    """Remove the state bucket with every version of all that is in it."""
    s3: S3Client = client("s3", env, environ)
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=env.state_bucket):
        for found in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
            s3.delete_object(Bucket=env.state_bucket, Key=found["Key"], VersionId=found["VersionId"])
    s3.delete_bucket(Bucket=env.state_bucket)


def account_of(region: str, environ: Mapping[str, str] | None = None) -> str:
    """The account that the credentials in force belong to."""
    nowhere = Environment("", region, "", "", Path())
    return str(client("sts", nowhere, os.environ if environ is None else environ).get_caller_identity()["Account"])


def _bucket_exists(s3: S3Client, env: Environment) -> bool:
    from botocore.exceptions import ClientError

    try:
        s3.head_bucket(Bucket=env.state_bucket, ExpectedBucketOwner=env.account_id)
    except ClientError as e:
        code = e.response.get("Error", {}).get("Code")
        if code in ("404", "NoSuchBucket"):
            return False
        if code in ("403", "AccessDenied"):
            raise SluiceError(
                f"no access to the state bucket {env.state_bucket} ({code})",
                "it belongs to somebody else, or these credentials may not read it",
            ) from None
        raise
    return True


def _tls_only(arn: str) -> dict[str, Any]:
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "TlsOnly",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": [arn, f"{arn}/*"],
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            }
        ],
    }
