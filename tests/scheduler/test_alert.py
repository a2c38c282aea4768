"""Who is told what, once, by a real mail server and a real webhook."""

from __future__ import annotations

import datetime as dt
import email
import email.policy
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from sqlalchemy import Engine, text

from runner.authoring import DAG, AuthoringError, Notify, task
from runner.scheduler import alert
from runner.scheduler.alert import Alerting, look
from runner.state import bundles, transitions
from tests.state.conftest import World

DAY = dt.timedelta(days=1)
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def world(engine: Engine) -> World:
    return World(engine)


class Hook:
    """A webhook that keeps what it is told; it can be told to fail, or to be slow."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.failures = 0
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.failures -= 1
                self.send_response(500 if hook.failures >= 0 else 200)
                if hook.failures < 0:
                    hook.posts.append(said)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.url = f"json://127.0.0.1:{self.server.server_port}/x"

    @property
    def titles(self) -> list[str]:
        return [p["title"] for p in self.posts]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


def until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def push(world: World, *dags: DAG) -> None:
    with world.engine.begin() as c:
        bundles.register_and_activate(
            c, version="v1", name="b", url="", size=0, specs=[d.spec() for d in dags], who="test"
        )
    world.node()


def loads(*, on_dag: Notify | None = None, on_task: Notify | None = None, retries: int = 0) -> DAG:
    @task(notify=on_task, retries=retries, retry_delay=dt.timedelta(0))
    def load() -> None: ...

    with DAG("d", notify=on_dag) as d:
        load()
    return d


def day(world: World, n: int, *results: str) -> int:
    """One run whose task ends like this, try after try."""
    run = world.run(date=START + n * DAY)
    for result in results:
        (claim,) = world.take()
        world.end(claim, result, error="boom" if result == "failed" else None)
    return run


def send(world: World) -> None:
    alerting = Alerting(world.engine, env="test")
    while alerting.send():
        pass


def test_a_run_fails_and_is_well_again(world: World, hook: Hook) -> None:
    push(world, loads(on_dag=Notify(hook.url)))
    first = day(world, 0, "success")
    failed = day(world, 1, "failed")
    day(world, 2, "failed")
    day(world, 3, "success")
    day(world, 4, "success")
    send(world)
    assert hook.titles == ["[test] d failed", "[test] d failed", "[test] d is well again"]
    assert first < failed
    assert hook.posts[0]["message"] == f"Run {failed} for 2026-01-02 00:00 UTC.\nload: boom"


def test_a_task_fails_is_retried_and_is_well_again(world: World, hook: Hook) -> None:
    push(world, loads(on_task=Notify(hook.url, on=("failure", "retry", "recovery")), retries=1))
    day(world, 0, "failed", "failed")
    day(world, 1, "failed", "success")
    day(world, 2, "success")
    send(world)
    assert hook.titles == [
        "[test] d.load failed and will be tried again",
        "[test] d.load failed",
        "[test] d.load failed and will be tried again",
        "[test] d.load is well again",
    ]


def test_what_runs_too_long_or_is_late_is_told_once(world: World, hook: Hook) -> None:
    hour = dt.timedelta(hours=1)
    push(
        world,
        loads(
            on_dag=Notify(hook.url, on=(), expected_duration=2 * hour, deadline=hour),
            on_task=Notify(hook.url, on="slow", expected_duration=hour),
        ),
    )
    world.run(date=dt.datetime.now(dt.UTC))
    (_claim,) = world.take()
    world.do(look)
    send(world)
    assert hook.titles == []
    for column, table in (("started_at", "task_instance"), ("started_at", "dag_run"), ("interval_end", "dag_run")):
        world.do(lambda c, q=f"UPDATE {table} SET {column} = now() - interval '3 hours'": c.execute(text(q)))
    for _ in range(3):
        world.do(look)
    send(world)
    assert sorted(hook.titles) == [
        "[test] d has missed its deadline",
        "[test] d runs longer than expected",
        "[test] d.load runs longer than expected",
    ]


def test_two_schedulers_and_a_restart_send_each_once(world: World, hook: Hook) -> None:
    push(world, loads(on_dag=Notify(hook.url, on="failure")))
    for n in range(12):
        day(world, n, "failed")
    threads = [Alerting(world.engine) for _ in range(2)]
    for t in threads:
        t.start()
    until(lambda: world.one("SELECT count(*) FROM notification WHERE state = 'sent'") == 12)
    for t in threads:
        t.stop()
    send(world)
    assert len(hook.posts) == 12


def test_what_cannot_be_sent_is_tried_again_and_said(world: World, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    push(world, loads(on_dag=Notify(hook.url, "nobodys", on="failure")))
    hook.failures = 1
    day(world, 0, "failed")
    send(world)
    assert hook.posts == []
    assert world.one("SELECT count(*) FROM notification WHERE state = 'waiting' AND error <> ''") == 2
    world.do(lambda c: c.execute(text("UPDATE notification SET due_at = now()")))
    monkeypatch.setattr(alert, "TRIES", 2)
    send(world)
    assert hook.titles == ["[test] d failed"]
    assert "no connection 'nobodys'" in world.one("SELECT error FROM notification WHERE state = 'failed'")


def test_what_a_scheduler_died_over_is_sent_by_another(world: World, hook: Hook) -> None:
    push(world, loads(on_dag=Notify(hook.url, on="failure")))
    day(world, 0, "failed")
    world.do(lambda c: c.execute(alert._CLAIM, {"n": 20, "stuck": 300}))
    send(world)
    assert hook.posts == []
    world.do(lambda c: c.execute(text("UPDATE notification SET due_at = now()")))
    send(world)
    assert len(hook.posts) == 1


def test_only_one_scheduler_looks_at_a_time(engine: Engine, world: World, hook: Hook) -> None:
    push(world, loads(on_dag=Notify(hook.url, on=(), deadline=dt.timedelta(hours=1))))
    world.run()
    with engine.begin() as leader:
        assert leader.execute(alert._LEAD).scalar_one()
        world.do(look)
        assert world.one("SELECT count(*) FROM notification") == 0
    world.do(look)
    assert world.one("SELECT count(*) FROM notification") == 1


def test_a_dag_that_tells_nobody_costs_no_statement(world: World) -> None:
    from sqlalchemy import event

    push(world, loads())
    world.run()
    (claim,) = world.take()
    seen: list[str] = []
    event.listen(world.engine, "before_cursor_execute", lambda _c, _cur, sql, *_: seen.append(sql))
    world.end(claim, "failed", error="x")
    assert seen and not [sql for sql in seen if "notification" in sql]


def test_a_sensor_that_fails_tells(world: World, hook: Hook) -> None:
    from runner.authoring.sensors import FileSensor

    with DAG("d") as d:
        FileSensor("wait", path="/x", notify=Notify(hook.url))
    push(world, d)
    world.run()
    id = world.one("SELECT id FROM task_instance")
    world.do(lambda c: transitions.sensed(c, [(id, "failed", None, "waited in vain")]))
    send(world)
    assert hook.titles == ["[test] d.wait failed"]
    assert hook.posts[0]["message"].endswith("waited in vain")


def test_by_mail_through_a_connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    mails: list[Any] = []

    class Mailbox:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            mails.append((envelope.rcpt_tos, email.message_from_bytes(envelope.content, policy=email.policy.default)))
            return "250 OK"

    class AnyPort(Controller):
        def _trigger_server(self) -> None:
            self.port = self.server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
            super()._trigger_server()

    controller = AnyPort(Mailbox(), hostname="127.0.0.1", port=0, server_hostname="x.org")
    controller.start()
    try:
        url = f"mailto://x.org:{controller.port}/?smtp=127.0.0.1&from=sluice@x.org&to=ann@x.org&mode=insecure"
        monkeypatch.setenv("SLUICE_CONN_ON_CALL", url)
        push(world, loads(on_dag=Notify("on-call")))
        day(world, 0, "failed")
        send(world)
    finally:
        controller.stop()
    assert world.one("SELECT coalesce(error, state) FROM notification") == "sent"
    ((receivers, mail),) = mails
    assert receivers == ["ann@x.org"]
    assert mail["Subject"] == "[test] d failed"
    assert "load: boom" in mail.get_body(("plain", "html")).get_content()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Notify(), "needs the name of a connection"),
        (lambda: Notify("slack://a/b/c"), "a URL with secrets in it"),
        (lambda: Notify("json://u:p@h/x"), "a URL with secrets in it"),
        (lambda: Notify("ops", on="fail"), "on='fail' is none of"),
        (lambda: Notify("ops", on="slow"), "on='slow' needs expected_duration"),
        (lambda: DAG("d", notify=Notify("ops", on="retry")), "on='retry' is not for DAGs"),
        (lambda: task(task_id="t", notify=Notify("ops", deadline=DAY))(print), "on='deadline' is not for tasks"),
        (lambda: DAG("d", notify="ops"), "notify must be a Notify"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_said(make: Any, says: str) -> None:
    with pytest.raises(AuthoringError, match=says):
        make()
