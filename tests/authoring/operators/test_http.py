"""Requests to a real server on this machine."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from runner.authoring import DAG, Context
from runner.authoring.operators import HttpError, HttpOperator


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what it was asked, by path."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        length = int(self.headers.get("Content-Length", 0))
        said = {
            "method": self.command,
            "path": path,
            "query": parse_qs(urlsplit(self.path).query),
            "body": self.rfile.read(length).decode(),
            "header": self.headers.get("X-Who"),
            "auth": self.headers.get("Authorization"),
        }
        if path == "/big":
            self._answer(200, b"x" * 3_000_000)
        elif path == "/broken":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"only this")
        elif path == "/silent":
            self.server.released.wait(60)  # type: ignore[attr-defined]
        elif path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/here")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path == "/error":
            self._answer(503, b"<h1>not\nnow</h1>")
        elif path == "/text":
            self._answer(200, "hello ünï".encode())
        elif path == "/nothing":
            self.send_response(204)
            self.end_headers()
        else:
            self._answer(200, json.dumps(said).encode())

    do_POST = do_GET

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.released = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_request_is_sent_as_it_is_written(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Given one with everything, through a connection, after a redirect another, and one with a body of text
    connection = f"{server.replace('://', '://ann:p%40ss@')}/api"
    with DAG("requests") as d:
        HttpOperator(
            "post", connection="api", url="days/{{ logical_date | ds }}", method="POST",
            params={"who": "{{ params.who }}"}, headers={"X-Who": "{{ task_id }}"}, json={"at": "{{ run_id }}", "n": 1},
        )  # fmt: skip
        HttpOperator("moved", url=f"{server}/moved")
        HttpOperator("form", url=f"{server}/form", method="POST", data={"a": "b c"})
        HttpOperator("raw", url=f"{server}/raw", method="POST", data="ünï")
    got = d.test(params={"who": "ann"}, connections={"api": connection})
    # Then the server saw it
    post = got["post"]
    assert (post["method"], post["query"], post["header"]) == ("POST", {"who": ["ann"]}, "post")
    assert post["path"].startswith("/api/days/20") and json.loads(post["body"]) == {"at": "test", "n": 1}
    assert post["auth"] == "Basic " + base64.b64encode(b"ann:p@ss").decode()
    assert got["moved"]["path"] == "/here" and got["moved"]["auth"] is None
    assert (got["form"]["body"], got["raw"]["body"]) == ("a=b+c", "ünï")
    assert "p%40ss" not in capsys.readouterr().out


def test_answers_are_json_text_or_nothing(server: str, context: Context) -> None:
    assert HttpOperator("h", url=f"{server}/text", returns="text").execute(context) == "hello ünï"
    assert HttpOperator("h", url=f"{server}/text", returns="none").execute(context) is None
    assert HttpOperator("h", url=f"{server}/nothing").execute(context) is None
    with pytest.raises(HttpError, match=r"the answer is no JSON \(returns='text' takes it\): hello"):
        HttpOperator("h", url=f"{server}/text").execute(context)


def test_an_answer_that_is_not_wanted_fails(server: str, context: Context) -> None:
    with pytest.raises(HttpError, match=r"GET http.*/error: 503 Service Unavailable: <h1>not now</h1>"):
        HttpOperator("h", url=f"{server}/error?token=s3cr3t").execute(context)

    def is_post(response: Any) -> bool:
        return bool(response.json()["method"] == "POST")

    with pytest.raises(HttpError, match="the answer 200 did not pass is_post"):
        HttpOperator("h", url=f"{server}/x", check=is_post).execute(context)
    assert HttpOperator("h", url=f"{server}/x", check=is_post, method="POST", returns="none").execute(context) is None


def test_a_server_that_is_silent_or_away_fails(server: str, context: Context) -> None:
    with pytest.raises(HttpError, match=r"GET .*/silent: timed out"):
        HttpOperator("h", url=f"{server}/silent", timeout_seconds=0.2).execute(context)
    with pytest.raises(HttpError, match="Connection refused") as e:
        HttpOperator("h", url="http://u:s3cr3t@127.0.0.1:9/").execute(context)
    assert "s3cr3t" not in str(e.value)
    with pytest.raises(HttpError, match="protocol"):
        HttpOperator("h", url="no-url").execute(context)


def test_a_body_is_streamed_to_storage_whole_or_not_at_all(server: str, context: Context) -> None:
    saved = HttpOperator("h", url=f"{server}/big", save_to="big-{{ run_id }}").render(context).execute(context)
    assert saved == {"url": context.storage.url_of("big-7"), "bytes": 3_000_000}
    assert context.storage.get("big-7") == b"x" * 3_000_000
    for path, message in (("broken", "peer closed connection"), ("error", "503")):
        with pytest.raises(HttpError, match=message):
            HttpOperator("h", url=f"{server}/{path}", save_to="other").execute(context)
    assert [s.key for s in context.storage.list()] == ["big-7"]
