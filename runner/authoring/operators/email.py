"""A mail as a task."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runner.authoring.context import Context
from runner.authoring.lookup import Connection, resolve
from runner.authoring.operators.base import Operator
from runner.authoring.operators.files import find, listed
from runner.authoring.operators.notify import NotifyError

if TYPE_CHECKING:
    import smtplib
    from email.message import EmailMessage

_PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}
_ATTACHED_MAX = 25 * 1024 * 1024  # bytes; more than this few servers take
_TIMEOUT_SECONDS = 60.0


class EmailOperator(Operator):
    """Sends one mail to all of `to` and `cc`, through the SMTP server of `connection` (a name, a URL or a Connection).

    The connection's type is `smtp` (no encryption, port 25), `smtp+starttls` (587) or `smtps` (465). `sender` is the
    From address, else the connection's extra `from`. `html` says that the body is HTML. `attachments` are keys of
    `context.storage` or URLs of objects, 25 MiB together. Raises NotifyError; a server that refuses one of the
    receivers is a failure.
    """

    template_fields = ("to", "cc", "subject", "body", "attachments")

    def __init__(
        self,
        task_id: str,
        *,
        connection: str | Connection,
        to: str | Sequence[str],
        subject: str,
        body: str,
        cc: str | Sequence[str] = (),
        sender: str | None = None,
        html: bool = False,
        attachments: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(task_id, **options)
        self.connection = connection
        self.to = to
        self.cc = cc
        self.subject = subject
        self.body = body
        self.sender = sender
        self.html = html
        self.attachments = attachments

    def execute(self, context: Context) -> None:
        """Send it."""
        import smtplib

        server = resolve(self.connection)
        name = f"connection {server.name or server.host}"
        if server.type not in _PORTS:
            raise NotifyError(f"{name}: its type is {server.type!r}, not one of {', '.join(_PORTS)}")
        message = self._message(server.extra.get("from", ""), name, context)
        try:
            with _connect(server) as smtp:
                if server.login:
                    smtp.login(server.login, server.password)
                refused = smtp.send_message(message)
        except (smtplib.SMTPException, OSError) as e:
            raise NotifyError(f"{name}: {' '.join(str(e).split()) or type(e).__name__}") from e
        if refused:
            raise NotifyError(f"{name}: the others have it, but it refused {', '.join(refused)}")
        print(f"sent to {', '.join([*listed(self.to), *listed(self.cc)])}")

    def _message(self, default_sender: str, name: str, context: Context) -> EmailMessage:
        from email.message import EmailMessage
        from email.utils import formatdate, make_msgid

        sender = self.sender or default_sender
        if "@" not in sender:
            raise NotifyError(f"{name}: a sender is needed: sender=… of the operator, or ?from=… of the connection")
        message = EmailMessage()
        message["From"] = sender
        message["To"] = ", ".join(listed(self.to))
        if self.cc:
            message["Cc"] = ", ".join(listed(self.cc))
        message["Subject"] = " ".join(self.subject.split())
        message["Date"] = formatdate()
        message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2].rstrip(">"))
        message.set_content(self.body, subtype="html" if self.html else "plain")
        size = 0
        for where in self.attachments:
            storage, key = find(where, context)
            size += storage.head(key).size
            if size > _ATTACHED_MAX:
                raise NotifyError(
                    f"attachments of more than {_ATTACHED_MAX >> 20} MiB; send a link to the file instead"
                )
            kind = mimetypes.guess_type(key)[0] or "application/octet-stream"
            main, _, sub = kind.partition("/")
            message.add_attachment(
                storage.get(key),
                maintype=main,
                subtype=sub,
                filename=key.rpartition("/")[2],
                params={"charset": "utf-8"} if main == "text" else None,
            )
        return message


def _connect(server: Connection) -> smtplib.SMTP:
    import smtplib
    import ssl

    port = server.port or _PORTS[server.type]
    if server.type == "smtps":
        return smtplib.SMTP_SSL(server.host, port, timeout=_TIMEOUT_SECONDS, context=ssl.create_default_context())
    smtp = smtplib.SMTP(server.host, port, timeout=_TIMEOUT_SECONDS)
    if server.type == "smtp+starttls":
        smtp.starttls(context=ssl.create_default_context())
    return smtp
