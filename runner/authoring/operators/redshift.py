"""Redshift loads and unloads S3 by itself: the statements, to be run by SQLOperator."""

from __future__ import annotations

from collections.abc import Sequence


def redshift_copy(
    table: str,
    source: str,
    *,
    iam_role: str = "default",
    columns: Sequence[str] = (),
    options: str = "FORMAT AS PARQUET",
) -> str:
    """`COPY table FROM 's3://…'`: load all files under a prefix, or those a manifest names.

    `table` may be `schema.table`. `iam_role` is an ARN, or "default" for the cluster's own. `options` are added as
    they are, e.g. `FORMAT AS CSV IGNOREHEADER 1 GZIP`. Raises ValueError for a source that is not on S3.
    """
    listed = f" ({', '.join(map(_name, columns))})" if columns else ""
    return _statement(f"COPY {_table(table)}{listed}", f"FROM {_s3(source)}", _role(iam_role), options)


def redshift_unload(
    query: str,
    target: str,
    *,
    iam_role: str = "default",
    options: str = "FORMAT AS PARQUET ALLOWOVERWRITE",
) -> str:
    """`UNLOAD ('query') TO 's3://…'`: write a query's rows in parallel to files whose names start with `target`.

    Raises ValueError for a target that is not on S3.
    """
    return _statement(f"UNLOAD ({_text(query.strip().rstrip(';'))})", f"TO {_s3(target)}", _role(iam_role), options)


def _statement(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _role(iam_role: str) -> str:
    return "IAM_ROLE default" if iam_role == "default" else f"IAM_ROLE {_text(iam_role)}"


def _s3(url: str) -> str:
    if not url.startswith("s3://") or len(url) < 6:
        raise ValueError(f"Redshift reads and writes s3://bucket/prefix only, not {url!r}")
    return _text(url)


def _table(table: str) -> str:
    return ".".join(map(_name, table.split(".")))


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    # Redshift's strings know backslashes too.
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
