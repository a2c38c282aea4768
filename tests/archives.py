"""A release archive as the roll reads it: a wheel with nothing in it but the schema's migrations."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import runner.state.migrate

MIGRATIONS = Path(runner.state.migrate.__file__).parent / "migrations"


def archive(more: Mapping[str, str] | None = None, *, without: str = "") -> bytes:
    """The migrations of this source tree, with `more` of them (`post/post_0002.py` → its text), `without` some."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as z:
        for path in sorted(MIGRATIONS.rglob("*.py")):
            if not without or without not in path.name:
                z.write(path, f"runner/state/migrations/{path.relative_to(MIGRATIONS)}")
        for name, content in (more or {}).items():
            z.writestr(f"runner/state/migrations/versions/{name}", content)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo("wheel/sluice-0-py3-none-any.whl")
        info.size = len(wheel.getvalue())
        tar.addfile(info, io.BytesIO(wheel.getvalue()))
    return out.getvalue()
