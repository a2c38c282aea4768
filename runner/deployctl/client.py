"""How an operator's command reaches an environment: its settings, its database, its artifacts.

For the local cloud everything comes from its state directory. Elsewhere the database is reached from inside the
network, by SLUICE_DATABASE_URL; a way through the web API comes later, behind this same interface.
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
from runner.deployctl import environment
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

    Raises UsageError for an environment that does not exist or whose database is not named, SluiceError if the
    local cloud does not run or the database has no schema.
    """
    settings = enter(env)
    engine = db.connect(settings.database(), pool_size=2, application_name="deployctl")
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
    if not settings.database_url:
        raise UsageError(
            f"no database named for {env}",
            "inside its network: set SLUICE_DATABASE_URL (and SLUICE_DATABASE_SECRET) as on its nodes",
        )
    return settings


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
        raise SluiceError(
            "the database has no schema yet", "run `runner db upgrade` on a node, or wait for it"
        ) from None
