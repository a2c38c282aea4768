"""The context of a task that no platform runs, and servers for it to talk to."""

import datetime as dt
import email
import email.policy
import http.server
import json
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from runner.authoring import Connection, Context

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context(
        dag_id="d",
        run_id="7",
        task_id="t",
        logical_date=NOON,
        interval_start=NOON - dt.timedelta(days=1),
        params={"who": "ann"},
        storage_url=f"file://{tmp_path_factory.mktemp('store')}",
    )


class Mailbox:
    """An SMTP server's inside: keeps what comes, refuses mail for nobody@…."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.receivers: list[list[str]] = []

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address.startswith("nobody@"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        self.receivers.append(envelope.rcpt_tos)
        assert session.authenticated
        return "250 OK"


class AnyPort(Controller):
    """On a port that is free."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        super()._trigger_server()


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def smtp(mailbox: Mailbox) -> Iterator[Connection]:
    def login(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=data.login == b"ann" and data.password == b"p@ss", handled=False)

    controller = AnyPort(
        mailbox, hostname="127.0.0.1", port=0, server_hostname="x.org", authenticator=login, auth_require_tls=False
    )
    controller.start()
    yield Connection(
        name="mail", type="smtp", host="127.0.0.1", port=controller.port, login="ann", password="p@ss",
        extra={"from": "a@x.org"},
    )  # fmt: skip
    controller.stop()


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(host:port, what was posted); /gone answers 404."""
    posted: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(404 if self.path == "/gone" else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", posted
    server.shutdown()
    server.server_close()
    thread.join()
