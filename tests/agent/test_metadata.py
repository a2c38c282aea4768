"""The metadata client against the local cloud's service."""

from __future__ import annotations

import datetime as dt
import http.server
import socket
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
        self.connections = 0
        self.hang_up = False  # after the next answer, without a word


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Imds

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

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
        self.close_connection |= self.server.hang_up  # the client is answered with the first byte
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


def test_one_connection_serves_many_requests_and_another_follows_when_it_is_closed(
    imds: Imds, metadata: Metadata
) -> None:
    imds.leaves["instance-id"] = "i-1"
    assert [metadata.get("meta-data/instance-id") for _ in range(3)] == ["i-1"] * 3
    assert metadata.get("meta-data/none") is None
    assert imds.connections == 1
    imds.hang_up = True
    assert [metadata.get("meta-data/instance-id") for _ in range(3)] == ["i-1"] * 3
    assert imds.connections == 3


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


def test_scheduled_maintenance_is_read_in_its_order_and_only_what_is_to_come(imds: Imds, metadata: Metadata) -> None:
    assert metadata.events() == []
    path = "events/maintenance/scheduled"
    imds.leaves[path] = """[
        {"NotBefore": "21 Jan 2030 09:00:43 GMT", "Code": "system-reboot", "State": "active", "EventId": "e1"},
        {"NotBefore": "1 Jan 2030 00:00:00 GMT", "Code": "instance-stop", "State": "completed"},
        {"NotBefore": "some day", "Code": "instance-stop", "State": "active"},
        {"NotBefore": "20 Jan 2030 09:00:43 GMT", "Code": "instance-retirement", "State": "active"}]"""
    first, second = metadata.events()
    assert (first.code, second.code) == ("instance-retirement", "system-reboot")
    assert first.not_before == dt.datetime(2030, 1, 20, 9, 0, 43, tzinfo=dt.UTC)
    imds.leaves[path] = "nonsense"
    assert metadata.events() == []


def test_a_rebalance_recommendation_is_one_whatever_it_says(imds: Imds, metadata: Metadata) -> None:
    assert not metadata.rebalance()
    imds.leaves["events/recommendations/rebalance"] = '{"noticeTime": "2026-10-27T08:22:00Z"}'
    assert metadata.rebalance()


def test_silence_is_an_os_error() -> None:
    with pytest.raises(OSError):
        Metadata("http://127.0.0.1:9").terminating()


def test_nonsense_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def babble() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                connection.recv(1000)
                connection.sendall(b"hello\r\n\r\n")
                connection.close()

        threading.Thread(target=babble, daemon=True).start()
        metadata = Metadata(f"http://127.0.0.1:{server.getsockname()[1]}")
        for _ in range(2):
            with pytest.raises(OSError, match="metadata api/token: "):
                metadata.terminating()
