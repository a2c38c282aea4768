"""The migrations that a release brings, read from its archive: `pre` before its first node, `post` after all others.

The release's own migrations are run, by whoever drives: an older scheduler does not have them.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from runner.rollout.facts import Schema
from runner.settings import SluiceError
from runner.state import migrate

_WITHIN = "runner/state/migrations/"
_LOCK_TIMEOUT = "5s"  # a migration that waits for a lock makes everybody behind it wait


def compare(archive: bytes, connection: Connection) -> Schema:
    """What the migrations in a release's archive and this database say of each other."""
    with _migrations(archive) as config:
        script = ScriptDirectory.from_config(config)
        known = {r.revision for r in script.walk_revisions()}
        heads = set(MigrationContext.configure(connection).get_current_heads())
        applied = {r.revision for head in heads & known for r in script.iterate_revisions(head, "base")}
        # The database may be further than this release: whatever the release knows of that branch is applied then.
        ahead = {_branch(h) for h in heads - known}
        applied |= {r for r in known if _branch(r) in ahead}
        missing = [r.revision for r in reversed(list(script.walk_revisions())) if r.revision not in applied]
        pre = [r for r in missing if _branch(r) == "pre"]
        needs = {
            d.revision
            for r in pre
            for d in script.iterate_revisions(r, "base", implicit_base=False)
            if _branch(d.revision) == "post" and d.revision not in applied
        }
    post = [r for r in missing if _branch(r) == "post"]
    return Schema(
        tuple(pre), tuple(post), tuple(sorted(h for h in heads - known if _branch(h) == "post")), tuple(sorted(needs))
    )


def upgrade(archive: bytes, engine: Engine, phase: str) -> None:
    """Run the migrations of one phase that are missing. Running it again changes nothing."""
    with _migrations(archive) as config, engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:k)"), {"k": migrate.LOCK})
        schema = compare(archive, connection)
        if not (schema.pre if phase == "pre" else schema.post):
            return
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
        config.attributes["connection"] = connection
        command.upgrade(config, f"{phase}@head")


@contextlib.contextmanager
def _migrations(archive: bytes) -> Iterator[Config]:
    """Alembic's configuration for the migrations in an archive. Raises SluiceError if it is none."""
    with tempfile.TemporaryDirectory(prefix="sluice-schema-") as name:
        try:
            with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
                wheels = [m for m in tar.getmembers() if m.name.startswith("wheel/") and m.name.endswith(".whl")]
                for member in wheels:
                    content = tar.extractfile(member)
                    assert content is not None
                    with zipfile.ZipFile(io.BytesIO(content.read())) as wheel:
                        for entry in wheel.namelist():
                            if entry.startswith(_WITHIN):
                                wheel.extract(entry, name)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as e:
            raise SluiceError(f"the archive of the release cannot be read: {e}", "publish it again") from None
        here = Path(name) / _WITHIN
        if not (here / "versions").is_dir():
            raise SluiceError("the release has no schema migrations in it", "was it built by `deployctl release`?")
        config = Config()
        config.set_main_option("script_location", str(here))
        config.set_main_option("path_separator", "os")
        config.set_main_option("version_locations", ":".join(str(here / "versions" / b) for b in ("pre", "post")))
        yield config


def _branch(revision: str) -> str:
    return revision.partition("_")[0]
