"""The metadata client against the local cloud's service."""

from __future__ import annotations

import datetime as dt
import http.server
import threading
from collections.abc import Iterator

import pytest

from runner.agent.metadata import Metadata


class Imds(http.server.ThreadingHTTPServer):
    """Answers with `leaves`; a token is good until `forget` is called."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.leaves: dict[str, str] = {}
        self.tokens: set[str] = set()
        self.issued = 0


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Imds

    def do_PUT(self) -> None:
        self.server.issued += 1
        token = f"t{self.server.issued}"
        self.server.tokens.add(token)
        self._answer(200, token)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") not in self.server.tokens:
            return self._answer(401, "")
        value = self.server.leaves.get(self.path.removeprefix("/latest/meta-data/"))
        return self._answer(404, "") if value is None else self._answer(200, value)

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def imds() -> Iterator[Imds]:
    server = Imds()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def metadata(imds: Imds) -> Metadata:
    return Metadata(f"http://127.0.0.1:{imds.server_address[1]}")


def test_one_token_serves_many_requests(imds: Imds, metadata: Metadata) -> None:
    imds.leaves["instance-id"] = "i-1"
    assert [metadata.get("meta-data/instance-id") for _ in range(3)] == ["i-1"] * 3
    assert imds.issued == 1


def test_a_forgotten_token_is_replaced(imds: Imds, metadata: Metadata) -> None:
    assert metadata.get("meta-data/none") is None
    imds.tokens.clear()
    imds.leaves["instance-id"] = "i-1"
    assert metadata.get("meta-data/instance-id") == "i-1"


def test_only_terminated_means_terminating(imds: Imds, metadata: Metadata) -> None:
    assert not metadata.terminating()
    imds.leaves["autoscaling/target-lifecycle-state"] = "InService"
    assert not metadata.terminating()
    imds.leaves["autoscaling/target-lifecycle-state"] = "Terminated"
    assert metadata.terminating()


def test_a_spot_notice_says_when(imds: Imds, metadata: Metadata) -> None:
    assert metadata.spot_end() is None
    imds.leaves["spot/instance-action"] = '{"action": "terminate", "time": "2026-05-01T10:00:00Z"}'
    assert metadata.spot_end() == dt.datetime(2026, 5, 1, 10, tzinfo=dt.UTC)


@pytest.mark.parametrize("notice", ["soon", "{}", "[1]", '{"time": 3}'])
def test_a_spot_notice_that_cannot_be_read_still_counts(imds: Imds, metadata: Metadata, notice: str) -> None:
    imds.leaves["spot/instance-action"] = notice
    end = metadata.spot_end()
    assert end is not None and 100 < (end - dt.datetime.now(dt.UTC)).total_seconds() <= 120


def test_silence_is_an_os_error() -> None:
    with pytest.raises(OSError):
        Metadata("http://127.0.0.1:9").terminating()
