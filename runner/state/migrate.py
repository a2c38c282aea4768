"""Schema migrations in two phases: `pre` runs before the first new node, `post` after the last old one.

Code of the previous release must live with the `pre` schema, so `pre` only adds; `post` may take away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from runner.state.db import connect, empty

Phase = Literal["pre", "post", "all"]
LOCK = 0x51_0C_E0  # advisory lock: two upgrades at once run one after the other


def config() -> Config:
    """Alembic's configuration, without a file of its own."""
    here = Path(__file__).parent / "migrations"
    cfg = Config()
    cfg.set_main_option("script_location", str(here))
    cfg.set_main_option("path_separator", "os")
    cfg.set_main_option("version_locations", ":".join([str(here / "versions/pre"), str(here / "versions/post")]))
    return cfg


def upgrade(url: str, phase: Phase = "all") -> None:
    """Bring the database to the newest schema of this phase. Running it again changes nothing."""
    engine = connect(url)
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:k)"), {"k": LOCK})
            _upgrade(connection, phase)
    finally:
        engine.dispose()


def create(connection: Connection) -> bool:
    """Make the whole schema in an empty database; False if there is one already. In the caller's transaction."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:k)"), {"k": LOCK})
    if not empty(connection):
        return False
    _upgrade(connection, "all")
    return True


def _upgrade(connection: Connection, phase: Phase) -> None:
    cfg = config()
    cfg.attributes["connection"] = connection
    for branch in ("pre", "post") if phase == "all" else (phase,):
        command.upgrade(cfg, f"{branch}@head")


def pending(connection: Connection) -> list[str]:
    """Revisions this code knows and the database lacks."""
    from alembic.runtime.migration import MigrationContext

    script = ScriptDirectory.from_config(config())
    applied: set[str] = set()
    for head in MigrationContext.configure(connection).get_current_heads():
        applied |= {r.revision for r in script.iterate_revisions(head, "base")}
    return sorted(r.revision for r in script.walk_revisions() if r.revision not in applied)
