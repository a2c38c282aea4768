"""Mail to a real SMTP server, notifications to a real webhook."""

from typing import Any

import pytest

from runner.authoring import DAG, Connection, Context
from runner.authoring.operators import EmailOperator, NotifyError, NotifyOperator


def test_a_mail_reaches_all_of_its_receivers(smtp: Connection, mailbox: Any, context: Context) -> None:
    context.storage.put("out/report.csv", "a,ü\n".encode())
    with DAG("mails") as d:
        EmailOperator(
            "mail", connection="mail", to=["bob@x.org", "Eve <eve@x.org>"], cc="joe@x.org",
            subject="Day {{ logical_date | ds }}\n", body="<b>ünï {{ params.who }}</b>", html=True,
            attachments=["out/report.csv"],
        )  # fmt: skip
    d.test(context.logical_date, params={"who": "ann"}, connections={"mail": smtp}, storage_url=context.storage_url)
    (mail,) = mailbox.mails
    assert mailbox.receivers == [["bob@x.org", "eve@x.org", "joe@x.org"]]
    assert (mail["From"], mail["Subject"], mail["To"]) == ("a@x.org", "Day 2026-03-01", "bob@x.org, Eve <eve@x.org>")
    html = mail.get_body(("html",))
    assert html is not None and html.get_content().strip() == "<b>ünï ann</b>"
    (attached,) = mail.iter_attachments()
    assert (attached.get_filename(), attached.get_content()) == ("report.csv", "a,ü\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"to": ["bob@x.org", "nobody@x.org"]}, "the others have it, but it refused nobody@x.org"),
        ({"to": "nobody@x.org"}, "no such user"),
        ({"sender": "nobody"}, "a sender is needed"),
        ({"connection": Connection(name="mail", type="http", host="h")}, "its type is 'http', not one of smtp"),
        ({"connection": Connection(type="smtp", host="127.0.0.1", port=9, extra={"from": "a@x.org"})}, "refused"),
    ],
)
def test_a_mail_that_does_not_arrive_fails(
    smtp: Connection, context: Context, change: dict[str, Any], message: str
) -> None:
    options = {"connection": smtp, "to": "bob@x.org", "subject": "s", "body": "b"} | change
    with pytest.raises(NotifyError, match=message):
        EmailOperator("mail", **options).execute(context)


def test_a_wrong_password_is_said_without_it(smtp: Connection, context: Context) -> None:
    wrong = Connection(name="mail", type="smtp", host=smtp.host, port=smtp.port, login="ann", password="s3cr3t")
    with pytest.raises(NotifyError, match=r"connection mail: .*535") as e:
        EmailOperator("mail", connection=wrong, to="b@x.org", sender="a@x.org", subject="", body="").execute(context)
    assert "s3cr3t" not in str(e.value)


def test_a_notification_reaches_a_webhook(webhook: tuple[str, list[dict[str, Any]]], context: Context) -> None:
    host, posted = webhook
    context.storage.put("a.txt", b"x")
    with DAG("notes") as d:
        NotifyOperator(
            "note", to=["team", f"json://{host}/b"], title="Run {{ run_id }}", body="it's done", attachments=["a.txt"]
        )
    d.test(connections={"team": f"json://{host}/a"}, storage_url=context.storage_url)
    assert [(p["title"], p["message"], p["attachments"][0]["filename"]) for p in posted] == [
        ("Run test", "it's done", "a.txt")
    ] * 2


def test_all_receivers_are_tried_and_each_failure_is_named(
    webhook: tuple[str, list[dict[str, Any]]], context: Context
) -> None:
    host, posted = webhook
    to = [f"json://{host}/gone", "nothing://x", f"json://{host}/a"]
    with pytest.raises(NotifyError, match=r"receiver 1: .*404.*; receiver 2: this is no Apprise URL$"):
        NotifyOperator("note", to=to, body="b").execute(context)
    assert len(posted) == 2
