"""The network that the partitions break, itself: each fault does what it says, and heals."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from .proxy import CUT, MUTE, SILENT, Proxy


class Echo:
    """Answers each line with itself; keeps what it was sent."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.heard: list[bytes] = []
        self.changed = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(s,), daemon=True).start()

    def _serve(self, s: socket.socket) -> None:
        with contextlib.suppress(OSError), s, s.makefile("rb") as lines:  # a reset is what some tests are about
            for line in lines:
                with self.changed:
                    self.heard.append(line)
                    self.changed.notify_all()
                s.sendall(line)

    def hears(self, line: bytes) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: line in self.heard, 60)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.listener.shutdown(socket.SHUT_RDWR)
    server.listener.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    proxy = Proxy(lambda: echo.address)
    yield proxy
    proxy.close()


def client(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 60)


def ask(s: socket.socket, line: bytes) -> bytes:
    s.sendall(line)
    return s.recv(100)


def test_what_is_sent_arrives_and_so_does_the_answer(proxy, echo):
    with client(proxy) as s:
        assert ask(s, b"one\n") == b"one\n"


def test_cut_resets_old_connections_and_new_ones(proxy, echo):
    with client(proxy) as s:
        assert ask(s, b"one\n") == b"one\n"
        proxy.fault(CUT)
        with pytest.raises(ConnectionError):
            if not s.recv(100):
                raise ConnectionResetError
    with pytest.raises(ConnectionError), client(proxy) as s:
        if not ask(s, b"two\n"):
            raise ConnectionResetError
    proxy.heal()
    with client(proxy) as s:
        assert ask(s, b"three\n") == b"three\n"
    assert b"two\n" not in echo.heard


def test_silence_holds_everything_until_it_is_healed(proxy, echo):
    with client(proxy) as s:
        assert ask(s, b"one\n") == b"one\n"
        proxy.fault(SILENT)
        s.sendall(b"two\n")
        s.settimeout(0.3)
        with pytest.raises(TimeoutError):
            s.recv(100)
        assert b"two\n" not in echo.heard
        s.settimeout(60)
        proxy.heal()
        assert s.recv(100) == b"two\n"


def test_mute_lets_requests_through_and_ends_what_has_lost_an_answer(proxy, echo):
    with client(proxy) as s, client(proxy) as idle:
        assert ask(idle, b"zero\n") == b"zero\n"
        proxy.fault(MUTE)
        s.sendall(b"one\n")
        assert echo.hears(b"one\n")
        s.settimeout(0.3)
        with pytest.raises(TimeoutError):
            s.recv(100)
        s.settimeout(60)
        proxy.heal()
        with contextlib.suppress(ConnectionError):  # as good
            assert s.recv(100) == b""
        assert ask(idle, b"two\n") == b"two\n"


def test_a_new_upstream_is_taken_at_the_next_connection(proxy, echo):
    other = Echo()
    with client(proxy) as s:
        assert ask(s, b"one\n") == b"one\n"
        proxy.upstream = lambda: other.address
        assert ask(s, b"two\n") == b"two\n"
    with client(proxy) as s:
        assert ask(s, b"three\n") == b"three\n"
    other.listener.close()
    assert (echo.heard, other.heard) == ([b"one\n", b"two\n"], [b"three\n"])
