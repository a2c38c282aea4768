"""A network between two processes that can be cut, swallow everything, or lose the answers only."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

Address = tuple[str, int] | str  # host and port, or the path of a unix socket

CUT = "cut"  # connections are reset, new ones too
SILENT = "silent"  # what is sent arrives nowhere, connections stay open and new ones hang
MUTE = "mute"  # requests arrive, answers do not
KINDS = (CUT, SILENT, MUTE)


@dataclass(eq=False)
class _Connection:
    client: socket.socket
    server: socket.socket | None = None
    holes: bool = field(default=False)  # bytes of it are lost: it can never be right again

    def reset(self) -> None:
        for s in (self.client, self.server):
            if s is not None:
                with contextlib.suppress(OSError):
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with contextlib.suppress(OSError):
                    s.shutdown(socket.SHUT_RD)  # whoever waits here is woken; closing sends the reset
                with contextlib.suppress(OSError):
                    s.close()


class Proxy:
    """Listens on a port of 127.0.0.1 and passes everything on to `upstream`, which is asked at every connection."""

    def __init__(self, upstream: Callable[[], Address]) -> None:
        self.upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._connections: set[_Connection] = set()
        self._changed = threading.Condition()
        self._state = ""  # one of KINDS, or nothing is wrong
        self._closed = False
        threading.Thread(target=self._accept, name=f"proxy {self.port}", daemon=True).start()

    def fault(self, kind: str) -> None:
        """Let this happen to what is sent from now on."""
        with self._changed:
            self._state = kind
        if kind == CUT:
            self.reset()

    def heal(self) -> None:
        """What was held arrives now, as after a short outage; a connection that has lost bytes is reset."""
        with self._changed:
            self._state = ""
            broken = [c for c in self._connections if c.holes]
            self._changed.notify_all()
        for connection in broken:
            self._drop(connection)

    def reset(self) -> None:
        """Reset what is connected."""
        with self._changed:
            connections = list(self._connections)
        for connection in connections:
            self._drop(connection)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            connection = _Connection(client)
            with self._changed:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: _Connection) -> None:
        try:
            if self._state == CUT or not self._passable():
                return
            connection.server = _open(self.upstream())
            answers = threading.Thread(target=self._pump, args=(connection, True), daemon=True)
            answers.start()
            self._pump(connection, False)
            answers.join()
        except OSError:
            return
        finally:
            self._drop(connection)

    def _pump(self, connection: _Connection, answers: bool) -> None:
        assert connection.server is not None
        source, target = connection.client, connection.server
        if answers:
            source, target = target, source
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._passes(connection, answers):
                    target.sendall(data)
        if self._passes(connection, answers):  # that a peer has left is not heard either while nothing arrives
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)

    def _passes(self, connection: _Connection, answers: bool) -> bool:
        """Whether what was read may be sent on; waits while nothing arrives anywhere."""
        with self._changed:
            self._changed.wait_for(lambda: self._state != SILENT or self._closed)
            if answers and self._state == MUTE:
                connection.holes = True
            return not self._closed and not (answers and connection.holes)

    def _passable(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._state != SILENT or self._closed)
            return not self._closed

    def _drop(self, connection: _Connection) -> None:
        with self._changed:
            self._connections.discard(connection)
        connection.reset()


def _open(address: Address) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout=None)
    found = socket.socket(socket.AF_UNIX)
    try:
        found.connect(address)
    except OSError:
        found.close()
        raise
    return found
