"""docs/operators.md: every example runs."""

import datetime as dt
import gzip
import http.server
import re
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from runner import authoring
from runner.authoring import DAG, Connection, Context, operators
from runner.localcloud.engines import Postgres
from runner.storage import Storage

PAGE = (Path(__file__).parents[3] / "docs/operators.md").read_text()
EXAMPLES = re.findall(r"^## (.+?)$(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.M | re.S)


@pytest.fixture
def api() -> Iterator[str]:
    """A server that has events of every day."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            day = self.path.rpartition("=")[2]
            body = f"n,what,day\n2,click,{day}\n3,click,{day}\n1,view,{day}\n".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_every_operator_has_an_example() -> None:
    code = "".join(text for _, text in EXAMPLES)
    public = [n for n in operators.__all__ if n != "redshift_unload" and not n.endswith("Error")]
    assert [name for name in public if f"{name}(" not in code and f"({name})" not in code] == []


def test_the_examples_run(
    context: Context, postgres: Postgres, aws: str, api: str, smtp: Connection, mailbox: Any, webhook: Any
) -> None:
    # Given the page as one DAG, each example after the one before it
    boto3.client("s3").create_bucket(Bucket="lake", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    names: dict[str, Any] = {**vars(authoring), **vars(operators), "Any": Any, "dt": dt, "statistics": statistics}
    with DAG("page") as d:
        before: list[str] = []
        for title, code in EXAMPLES:
            if title == "Containers":
                continue
            exec(compile(code, f"docs/operators.md, {title}", "exec"), names)
            added = [t for t in d.nodes if t not in before]
            for task_id in added:
                if before:
                    authoring.Output(d, before[-1]) >> authoring.Output(d, task_id)
            before = list(d.nodes)

    # When it runs
    host, posted = webhook
    connections = {"api": api, "warehouse": postgres.create_database("docs"), "mail": smtp, "team": f"json://{host}/"}
    results = d.test(
        context.logical_date, params={"city": "Lima"}, connections=connections, storage_url=context.storage_url
    )

    # Then each did what the page says
    assert results["median"] == 2
    assert int(results["lines"]) > 0
    assert results["events"]["url"] == context.storage.url_of("events/2026-03-01.csv")
    assert results["load"]["rows"] == 3 and results["top"]["rows"] == 2
    lake = Storage.open("s3://lake")
    assert gzip.decompress(lake.get("top/2026-03-01.csv.gz")) == b"what,n\nclick,5\nview,1\n"
    assert names["statement"].startswith('COPY "web"."events"')
    assert results["publish"] == ["s3://lake/published/2026-03-01/2026-03-01.csv"]
    assert mailbox.mails[0]["Subject"] == "Events of 2026-03-01"
    assert posted[0]["message"] == "2026-03-01 is in the warehouse"
    assert results["weather"] == {"city": "Lima", "from": "127.0.0.1", "day": "2026-03-01"}
