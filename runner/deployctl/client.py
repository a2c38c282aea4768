"""How an operator's command reaches an environment: its settings, its database, its artifacts.

For the local cloud everything comes from its state directory. Elsewhere the data stack's state says where database and
buckets are, and the database is reached as it is inside the network, from outside through a node (`tunnel`). What
SLUICE_DATABASE_URL names is taken as it is.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from runner import settings as configuration
from runner.deployctl import environment, tunnel
from runner.deployctl.environment import NothingYetError
from runner.deployctl.pipelines import Pipelines
from runner.localcloud import state as localcloud
from runner.settings import Settings, SluiceError, UsageError
from runner.state import db
from runner.storage import Storage


@dataclass(frozen=True)
class Client:
    """One environment, connected."""

    env: str
    settings: Settings
    engine: Engine

    def artifacts(self) -> Storage:
        """Where releases and bundles are kept."""
        return Storage.open(self.settings.artifacts_url, region=self.settings.region)

    def pipelines(self) -> Pipelines:
        """Pipeline code: what is published and active, and the means to change it."""
        return Pipelines(self.engine, self.artifacts())


@contextlib.contextmanager
def connect(env: str) -> Iterator[Client]:
    """The client of an environment.

    Raises UsageError for an environment that does not exist or has no database, NothingYetError for one that has never
    been up, SluiceError if the local cloud does not run or nothing leads to the database.
    """
    settings = enter(env)
    with _way(settings) as url:
        engine = db.connect(url, pool_size=2, application_name="deployctl")
        try:
            try:
                _check_schema(engine)
            except OperationalError:
                if env != localcloud.ENV:
                    raise
                raise SluiceError(
                    "the database of the local cloud does not answer", "`deployctl local up` starts it again"
                ) from None
            yield Client(env, settings, engine)
        finally:
            engine.dispose()


def artifacts(env: str) -> Storage:
    """Where an environment's releases and bundles are kept; its database need not be there yet. Raises UsageError."""
    settings = enter(env)
    return Storage.open(settings.artifacts_url, region=settings.region)


@contextlib.contextmanager
def _way(settings: Settings) -> Iterator[str]:
    """The URL of the database from here; one that was named is taken as it is."""
    if settings.env == localcloud.ENV or os.environ.get("SLUICE_DATABASE_URL"):
        yield settings.database()
        return
    with tunnel.opened(settings.database(), environment.load(settings.env)) as url:
        yield url


def enter(env: str) -> Settings:
    """Make this process one of the environment's own and return its settings."""
    known = environment.load(env)
    if env == localcloud.ENV:
        local = localcloud.load()
        if not local.database_url:
            raise SluiceError("the local cloud has no database yet", "run `deployctl local up`")
        os.environ.update(local.environment())
        for stranger in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            os.environ.pop(stranger, None)
    os.environ.setdefault("AWS_REGION", known.region)
    os.environ.setdefault("AWS_DEFAULT_REGION", known.region)
    os.environ.setdefault("SLUICE_ENV", env)
    os.environ.setdefault("SLUICE_REGION", known.region)
    os.environ.setdefault("SLUICE_ARTIFACTS_URL", f"s3://sluice-{env}-artifacts-{known.account_id}")
    os.environ.setdefault("SLUICE_STORAGE_URL", f"s3://sluice-{env}-storage-{known.account_id}")
    settings = configuration.load()
    if settings.env != env:
        raise UsageError(f"SLUICE_ENV is {settings.env!r}, not {env!r}", "unset it, or name that environment")
    if settings.database_url:
        return settings
    made = environment.outputs(known, "data", os.environ)
    if not made:
        raise UsageError(
            f"{env} has no database yet",
            f"`deployctl infra apply --env {env} --stack data` makes it; SLUICE_DATABASE_URL names another",
        )
    return settings.model_copy(
        update={"database_url": made["database_url"], "database_secret": made["database_secret_arn"]}
    )


def who() -> str:
    """Who gives the order, for the history: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _check_schema(engine: Engine) -> None:
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1 FROM rollout LIMIT 1"))
    except ProgrammingError:
        raise NothingYetError(
            "the database has no schema yet", "the first scheduler creates it, or `runner db upgrade`"
        ) from None
