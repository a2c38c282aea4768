"""Configuration of every process, declared once and read from the environment (`SLUICE_*`)."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class SluiceError(Exception):
    """Something the user can act on: one line that says what and where, and a hint that says what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SluiceError):
    """The command or the configuration is wrong; nothing was done."""

    exit_code = 2


class RefusedError(SluiceError):
    """The command was understood and refused for safety; nothing was done."""

    exit_code = 3


class Settings(BaseSettings):
    """What a process needs to know. Every field is an environment variable: `SLUICE_` + its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SLUICE_", extra="ignore")

    env: str = Field("dev", description="environment this process belongs to")
    region: str = Field(default_factory=lambda: os.environ.get("AWS_REGION", "us-east-1"), description="AWS region")
    database_url: str = Field("", description="postgresql://… of the metadata database")
    database_secret: str = Field(
        "", description="Secrets Manager ARN of {username, password}, instead of a password in the URL"
    )
    broker_url: str = Field("", description="redis://… or rediss://… of the Celery broker")
    broker_secret: str = Field("", description="Secrets Manager ARN of the broker's auth token")
    artifacts_url: str = Field("", description="where releases/ and bundles/ are kept: s3://… or file:///…")
    storage_url: str = Field("", description="where logs/ and files/ are kept: s3://… or file:///…")
    home: Path = Field(Path(".sluice/home"), description="this node's own directory: caches, spool, logs")
    role: Literal["worker", "scheduler", "web", "monitoring"] = Field("worker", description="what this node runs")
    supervisor: Literal["process", "systemd"] = Field(
        "process", description="who runs the node's service: process, a child of the agent; systemd, a unit"
    )
    rebalance: Literal["replace", "ignore"] = Field(
        "replace", description="what a spot node does when EC2 recommends to rebalance: replace drains and replaces it"
    )
    pool: str = Field("default", description="worker pool of this node")
    queues: str = Field("default", description="queues this node's workers consume, comma separated")
    slots: int = Field(4, ge=1, description="tasks this node runs at once")
    release: str = Field("dev", description="release this process was started from")
    release_key: str = Field(
        "", description="minisign public keys, comma separated; only releases that one of them signed are taken"
    )
    node_id: str = Field("", description="identity of the node; the instance id on AWS")
    instance_id: str = Field("", description="EC2 instance id, empty outside a cloud")
    imds_url: str = Field("http://169.254.169.254", description="instance metadata service")
    lease_seconds: float = Field(300.0, gt=1, description="a running task's lease; longer than a failover")
    heartbeat_seconds: float = Field(2.0, gt=0, description="how often a node renews its leases")
    xcom_inline_bytes: int = Field(65_536, ge=0, description="larger return values are kept in storage")
    xcom_max_bytes: int = Field(67_108_864, ge=1, description="larger return values are refused")
    recycle_mb: int = Field(512, ge=32, description="a task process that has grown beyond this is not used again")
    drain_seconds: int = Field(3600, ge=1, description="how long a drain may wait for running tasks")
    cloudwatch: bool = Field(False, description="whether the schedulers publish heartbeat and backlog to CloudWatch")
    secret_key: str = Field("", description="Fernet keys of stored secrets, comma separated; the first encrypts")
    web_host: str = Field("127.0.0.1", description="address the web process binds")
    web_port: int = Field(8080, ge=0, le=65535, description="port the web process binds, 0 picks one")
    log_level: str = Field("info", description="debug, info, warning or error")

    @field_validator("database_url")
    @classmethod
    def _postgres_only(cls, value: str) -> str:
        if value and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError(f"must start with postgresql://, not {value.split(':')[0]}://")
        return value

    @field_validator("broker_url")
    @classmethod
    def _redis_only(cls, value: str) -> str:
        if value and not value.startswith(("redis://", "rediss://")):
            raise ValueError(f"must start with redis:// or rediss://, not {value.split(':')[0]}://")
        return value

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.lower() not in ("debug", "info", "warning", "error"):
            raise ValueError(f"must be debug, info, warning or error, not {value!r}")
        return value.lower()

    @model_validator(mode="after")
    def _deadlines_nest(self) -> Settings:
        if self.lease_seconds < 3 * self.heartbeat_seconds:
            raise ValueError(
                f"lease_seconds ({self.lease_seconds:g}) must be at least three heartbeats "
                f"({self.heartbeat_seconds:g} s each), or one late heartbeat loses the task"
            )
        return self

    @property
    def queue_list(self) -> list[str]:
        """The queues, without blanks."""
        return [q.strip() for q in self.queues.split(",") if q.strip()]

    def require(self, *names: str) -> None:
        """Raise UsageError for the first of these fields that is empty."""
        for name in names:
            if not getattr(self, name):
                raise UsageError(f"SLUICE_{name.upper()} is not set", type(self).model_fields[name].description or "")

    def database(self) -> str:
        """The database URL, with user and password from the secret where one is named."""
        self.require("database_url")
        if not self.database_secret:
            return self.database_url
        secret = json.loads(_secret(self.database_secret, self.region))
        return _with_login(self.database_url, secret["username"], secret["password"])

    def broker(self) -> str:
        """The broker URL, with the auth token from the secret where one is named."""
        self.require("broker_url")
        if not self.broker_secret:
            return self.broker_url
        return _with_login(self.broker_url, "", _secret(self.broker_secret, self.region))

    def masked(self) -> dict[str, Any]:
        """All values as they are in force, passwords replaced by `***`."""
        out = self.model_dump(mode="json")
        for name in ("database_url", "broker_url"):
            parts = urlsplit(out[name])
            if parts.password:
                out[name] = out[name].replace(f":{parts.password}@", ":***@")
        out["secret_key"] = out["secret_key"] and "***"
        return out


def load() -> Settings:
    """Read the settings from the environment. Raises UsageError naming the variable that is wrong."""
    try:
        return Settings()
    except ValidationError as e:
        first = e.errors()[0]
        where = "SLUICE_" + "_".join(str(x) for x in first["loc"]).upper() if first["loc"] else "configuration"
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error" and isinstance(first["input"], str):  # ours name what may be shown
            said += f", not {first['input']!r}"
        field = Settings.model_fields.get(str(first["loc"][0])) if first["loc"] else None
        raise UsageError(f"{where}: {said}", (field.description or "") if field else "") from None


@functools.cache
def _secret(arn: str, region: str) -> str:
    import boto3  # only nodes whose engines keep their password in Secrets Manager pay for the import

    return str(boto3.client("secretsmanager", region_name=region).get_secret_value(SecretId=arn)["SecretString"])


def _with_login(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{host}"))
