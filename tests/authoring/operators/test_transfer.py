"""Files into tables and tables into files, on real engines."""

import csv
import gzip
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest

from runner.authoring import DAG, Context, task
from runner.authoring.operators import (
    SQLError,
    SQLOperator,
    SQLToStorage,
    StorageToSQL,
    redshift_copy,
    redshift_unload,
)
from runner.localcloud.engines import Postgres
from runner.storage import MissingError, Storage


@pytest.fixture(scope="module")
def pg(postgres: Postgres) -> str:
    return postgres.create_database("operators_transfer")


@pytest.fixture(params=["postgresql", "sqlite"])
def db(request: pytest.FixtureRequest, pg: str, tmp_path: Path, context: Context) -> str:
    """A database with an empty table t."""
    url = pg if request.param == "postgresql" else f"sqlite:///{tmp_path}/db"
    sql = ["DROP TABLE IF EXISTS t", "CREATE TABLE t (id int NOT NULL, name text, price numeric)"]
    SQLOperator("make", connection=url, sql=sql).execute(context)
    return url


def rows(db: str, context: Context) -> Any:
    return SQLOperator("rows", connection=db, sql="SELECT * FROM t ORDER BY id", returns="rows").execute(context)


def test_files_are_loaded_by_the_names_in_their_first_line(db: str, context: Context) -> None:
    # Given three files: other orders of columns, a byte order mark, Windows lines, packed in two members, empty
    context.storage.put("a.csv", '\ufeffname,id\r\n"it""s, ünï",1\r\n,2\r\n'.encode())
    context.storage.put("b.csv.gz", gzip.compress(b"id,price,name\n3,1.50,x\n") + gzip.compress(b"4,,y\n"))
    context.storage.put("c.csv", b"")

    # When they are loaded, by key and by URL
    with DAG("load") as d:
        StorageToSQL("load", source=["a.csv", f"{context.storage.url}/b.csv.gz", "c.csv"], connection="db", table="t")
    done = d.test(connections={"db": db}, storage_url=context.storage_url)["load"]

    # Then every row is there
    assert (done["files"], done["rows"]) == (3, 4)
    loaded = [(r["id"], r["name"], r["price"] and float(r["price"])) for r in rows(db, context)]
    assert loaded == [(1, 'it"s, ünï', None), (2, None, None), (3, "x", 1.5), (4, "y", None)]


def test_a_load_that_may_be_repeated(db: str, context: Context) -> None:
    context.storage.put("d.tsv", b"1\tone\n2\ttwo")
    load = StorageToSQL(
        "load", source="d.tsv", connection=db, table="t", columns=["id", "name"], delimiter="\t",
        before="DELETE FROM t WHERE id < :below", parameters={"below": 10},
    )  # fmt: skip
    for _ in range(2):
        assert load.execute(context)["rows"] == 2
    assert [r["name"] for r in rows(db, context)] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,name\n3,x\n4\n", "b.csv"),
        (b"id,nome\n3,x\n", "nome"),
        (b"id,,name\n3,x,y\n", "its first line names no columns"),
        (b'id,name\n3,"x\n', "b.csv"),
    ],
)
def test_a_file_that_does_not_fit_leaves_nothing_of_the_others(
    db: str, context: Context, content: bytes, message: str
) -> None:
    context.storage.put("a.csv", b"id,name\n1,one\n")
    context.storage.put("b.csv", content)
    with pytest.raises(SQLError, match=message):
        StorageToSQL("load", source=["a.csv", "b.csv"], connection=db, table="t", before="DELETE FROM t").execute(
            context
        )
    assert rows(db, context) == []


def test_a_source_that_breaks_off_leaves_nothing(db: str, context: Context) -> None:
    packed = gzip.compress(b"id,name\n" + b"".join(b"%d,%s\n" % (n, os.urandom(8).hex().encode()) for n in range(9999)))
    context.storage.put("cut.csv.gz", packed[:-500])
    with pytest.raises(EOFError):
        StorageToSQL("load", source="cut.csv.gz", connection=db, table="t").execute(context)
    with pytest.raises(MissingError, match=r"there is no gone\.csv"):
        StorageToSQL("load", source="gone.csv", connection=db, table="t").execute(context)
    assert rows(db, context) == []


def test_a_query_becomes_a_file_and_comes_back(db: str, context: Context) -> None:
    # Given rows with everything that CSV finds hard
    values = [(n, None if n % 3 == 0 else f'a,"b"\n{n}%é') for n in range(12_000)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("id", "name"), *values])
    context.storage.put("in.csv", text.getvalue().encode())
    StorageToSQL("load", source="in.csv", connection=db, table="t").execute(context)

    # When some are written to a file, with the names upstream and run gave
    @task
    def least() -> int:
        return 6000

    sql = "SELECT id, name AS \"the name\" FROM t WHERE id >= :least AND name <> '%' ORDER BY id;"
    with DAG("unload") as d:
        SQLToStorage(
            "unload", connection="db", sql=sql,
            parameters={"least": least()}, target="out/{{ logical_date | ds }}.csv.gz",
        )  # fmt: skip
    done = d.test(context.logical_date, connections={"db": db}, storage_url=context.storage_url)["unload"]

    # Then they are in it
    wanted = [(str(n), v) for n, v in values if n >= 6000 and v]
    assert done == {"url": context.storage.url_of("out/2026-03-01.csv.gz"), "rows": 4000, "bytes": done["bytes"]}
    found = list(csv.reader(io.StringIO(gzip.decompress(context.storage.get("out/2026-03-01.csv.gz")).decode(), "")))
    assert found == [["id", "the name"], *map(list, wanted)]


def test_a_query_that_fails_writes_no_file(db: str, context: Context) -> None:
    with pytest.raises(SQLError, match="gone"):
        SQLToStorage("u", connection=db, sql="SELECT * FROM gone", target="out.csv").execute(context)
    # one that fails in the middle neither
    late = "SELECT 1/(100000 - n) FROM generate_series(1, 100000) AS n" if "sqlite" not in db else "SELECT * FROM gone"
    with pytest.raises(SQLError, match=r"division by zero|gone"):
        SQLToStorage("u", connection=db, sql=late, target="out.csv").execute(context)
    assert context.storage.list() == []


def test_from_s3_to_postgresql_and_back(aws: str, pg: str, context: Context) -> None:
    boto3.client("s3").create_bucket(Bucket="transfers", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    lake = Storage.open("s3://transfers")
    lake.put("in/events.csv", b"id,what\n" + b"".join(b"%d,click\n" % n for n in range(200_000)))
    SQLOperator(
        "make", connection=pg, sql=["CREATE SCHEMA web", 'CREATE TABLE web."Events" (id int, what text)']
    ).execute(context)
    done = StorageToSQL("load", source="s3://transfers/in/events.csv", connection=pg, table="web.Events").execute(
        context
    )
    assert done == {"files": 1, "bytes": lake.head("in/events.csv").size, "rows": 200_000}
    back = SQLToStorage(
        "unload", connection=pg, sql='SELECT * FROM web."Events" ORDER BY id', target="s3://transfers/out/events.csv"
    ).execute(context)
    assert back["rows"] == 200_000 and lake.get("out/events.csv") == lake.get("in/events.csv")


def test_memory_does_not_grow_with_the_file(pg: str, context: Context) -> None:
    # Given a file of 70 MB
    line = b"%d," + b"x" * 120 + b"\n"
    context.storage.put("big.csv", (b"".join(line % (n + k) for k in range(10_000)) for n in range(0, 500_000, 10_000)))
    code = f"""
import datetime as dt, resource
from runner.authoring import Context
from runner.authoring.operators import SQLOperator, SQLToStorage, StorageToSQL
now = dt.datetime.now(dt.UTC)
c = Context(dag_id="d", run_id="1", task_id="t", logical_date=now, storage_url={context.storage_url!r})
SQLOperator("m", connection={pg!r}, sql="CREATE UNLOGGED TABLE big (id int, pad text)").execute(c)
SQLToStorage("warm", connection={pg!r}, sql="SELECT 1 AS a", target="warm.csv").execute(c)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load = StorageToSQL("l", source="big.csv", connection={pg!r}, table="big", columns=["id", "pad"]).execute(c)
unload = SQLToStorage("u", connection={pg!r}, sql="SELECT * FROM big", target="back.csv").execute(c)
assert load["rows"] == unload["rows"] == 500_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    # When it is loaded and written again, in a process of its own
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Then that took less memory than the file has bytes: KiB
    assert int(done.stdout.splitlines()[-1]) < 60 * 1024
    with psycopg.connect(pg) as c:
        c.execute("DROP TABLE big")


def test_redshift_statements() -> None:
    assert redshift_copy('web.Ev"ents', "s3://lake/in's/", columns=["id", "what"], options="FORMAT AS CSV GZIP") == (
        'COPY "web"."Ev""ents" ("id", "what")\nFROM \'s3://lake/in\'\'s/\'\nIAM_ROLE default\nFORMAT AS CSV GZIP'
    )
    assert redshift_unload("SELECT 'a\\n' ;", "s3://lake/out/", iam_role="arn:aws:iam::123456789012:role/r") == (
        "UNLOAD ('SELECT ''a\\\\n'' ')\nTO 's3://lake/out/'\n"
        "IAM_ROLE 'arn:aws:iam::123456789012:role/r'\nFORMAT AS PARQUET ALLOWOVERWRITE"
    )
    with pytest.raises(ValueError, match="s3://bucket/prefix only"):
        redshift_copy("t", "file:///x")
