"""An empty database: the first scheduler of an environment creates the schema. Imported when it is needed."""

from __future__ import annotations

from sqlalchemy import Connection

from runner.rollout import published
from runner.settings import Settings
from runner.state import migrate
from runner.storage import Storage


def create(connection: Connection, settings: Settings, node_id: str) -> bool:
    """Create the schema and write down the release that this node came with; False if there is a schema already."""
    if not migrate.create(connection):
        return False
    storage = Storage.open(settings.artifacts_url, region=settings.region)
    published.announce(settings.release, storage, connection, node_id)
    return True
