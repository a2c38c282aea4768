"""Connections and variables for what a scheduler itself does: sensors and notifications."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine

from runner.authoring.lookup import Connection, Kind, Provider
from runner.objects import Cipher, Resolver, fields
from runner.settings import Settings
from runner.state import objects


def provider(engine: Engine, settings: Settings) -> Provider:
    """Reads the database and the secrets. What it returns raises SluiceError where a secret is not to be had."""
    cipher, resolver = Cipher(settings.secret_key), Resolver(settings.region)

    def provide(kind: Kind, name: str) -> Mapping[str, Any] | None:
        with engine.begin() as connection:
            row = objects.find(connection, kind, name)
        if row is None:
            return None
        value = fields(resolver.resolve(cipher.open(row.value)))
        if kind == "variable":
            return {"value": value}
        return dataclasses.asdict(Connection.from_url(value["url"], name)) if "url" in value else dict(value)

    return provide
