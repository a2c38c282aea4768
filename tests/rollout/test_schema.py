"""Schema phases: what a release's archive and a database say of each other, and the migrations that are run from it."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from runner.rollout import schema
from runner.rollout.facts import Schema
from runner.settings import SluiceError
from tests.archives import archive


def revision(name: str, after: str, body: str, depends_on: str = "None") -> str:
    return (
        f'"""{name}"""\nfrom alembic import op\nrevision = {name!r}\ndown_revision = {after!r}\nbranch_labels = None\n'
        f"depends_on = {depends_on}\n\n\ndef upgrade():\n    op.execute({body!r})\n"
    )


PRE = revision("pre_9001", "HEAD", "ALTER TABLE node ADD COLUMN rack text")
POST = revision("post_9001", "HEAD", "ALTER TABLE node DROP COLUMN rack")


def head(engine: Engine, branch: str) -> str:
    with engine.connect() as c:
        found = c.execute(text("SELECT version_num FROM alembic_version")).scalars()
        return next(v for v in found if v.startswith(branch))


@pytest.fixture
def newer(engine: Engine) -> bytes:
    """A release with one more migration of each phase."""
    return archive(
        {
            "pre/pre_9001.py": PRE.replace("HEAD", head(engine, "pre")),
            "post/post_9001.py": POST.replace("HEAD", head(engine, "post")),
        }
    )


def compared(engine: Engine, content: bytes) -> Schema:
    with engine.connect() as c:
        return schema.compare(content, c)


def rack(engine: Engine) -> bool:
    with engine.connect() as c:
        return bool(c.execute(text("SELECT 1 FROM information_schema.columns WHERE column_name = 'rack'")).scalar())


def test_the_same_schema(engine: Engine) -> None:
    assert compared(engine, archive()) == Schema()


def test_each_phase_is_run_once_and_by_itself(engine: Engine, newer: bytes) -> None:
    assert compared(engine, newer) == Schema(("pre_9001",), ("post_9001",))
    schema.upgrade(newer, engine, "pre")
    assert rack(engine) and compared(engine, newer) == Schema((), ("post_9001",))
    schema.upgrade(newer, engine, "pre")  # again
    # The release before it knows nothing of the new column, and may live with it
    assert compared(engine, archive()) == Schema()
    schema.upgrade(archive(), engine, "post")
    assert rack(engine)
    schema.upgrade(newer, engine, "post")
    assert not rack(engine) and compared(engine, newer) == Schema()
    # But not with what was taken away
    assert compared(engine, archive()) == Schema(ahead=("post_9001",))


def test_a_release_whose_additions_need_a_removal_first_says_so(engine: Engine) -> None:
    content = archive(
        {
            "post/post_9001.py": revision("post_9001", head(engine, "post"), "SELECT 1"),
            "pre/pre_9001.py": revision("pre_9001", head(engine, "pre"), "SELECT 1", "'post_9001'"),
        }
    )
    found = compared(engine, content)
    assert found.pre == ("pre_9001",) and found.blocked == ("post_9001",)


@pytest.mark.parametrize("content", [b"x", b""])
def test_an_archive_that_is_none(engine: Engine, content: bytes) -> None:
    with pytest.raises(SluiceError, match="cannot be read"):
        compared(engine, content)
