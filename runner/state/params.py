"""The params of a run that is wished for, against what its DAG declares."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

from runner.authoring import params
from runner.settings import UsageError

_DECLARED = text("""
SELECT v.spec -> 'params' AS params FROM dag d JOIN dag_version v USING (dag_id, bundle_version) WHERE d.dag_id = :dag
""")


def check(connection: Connection, dag_id: str, given: dict[str, Any]) -> None:
    """Raise UsageError with a line for each value that does not fit, is unknown or is missing."""
    declared = connection.execute(_DECLARED, {"dag": dag_id}).scalar() or {}
    wrong = params.problems(declared, given | {k: v for k, v in params.defaults(declared).items() if k not in given})
    if wrong:
        names = ", ".join(declared)
        raise UsageError(f"DAG {dag_id!r}: " + "\n".join(wrong), f"it takes {names}" if names else "")
