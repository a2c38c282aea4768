from __future__ import annotations

import datetime as dt
import re

import pytest
from sqlalchemy import Engine

from runner.authoring.spec import DagSpec, TaskSpec
from runner.state import nodes

from .conftest import ODD, Client, World


def page(client: Client, path: str, **headers: str) -> str:
    answer = client.get(path, headers={"Accept": "text/html", **headers})
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.fixture
def busy(world: World) -> tuple[World, int, int]:
    """A failed run and a running one; the id of the latter and of its running task."""
    failed = world.run()
    for _ in range(2):
        world.finish(*world.start(), result="failed", error=f"broke {ODD}")
    run = world.run(date=dt.datetime(2026, 3, 2, tzinfo=dt.UTC))
    (claim,) = world.start()
    with world.engine.begin() as c:
        nodes.cordon(c, "n1", reason="roll 1", by="ana", deadline_seconds=60)
    world.sql(
        "INSERT INTO rollout (role, pool, release, strategy, wish, created_by, driver)"
        " VALUES ('worker', 'default', 'r2', 'replace', '{}', 'ana', 'n9')"
    )
    world.sql(
        "INSERT INTO rollout_step (rollout_id, seq, action, args, state) VALUES"
        " (1, 1, 'surge', jsonb_build_object('count', 1), 'done'),"
        " (1, 2, 'drain', jsonb_build_object('node', 'n1'), 'running')"
    )
    assert failed != run
    return world, run, claim.task_instance


def test_every_page_shows_what_is_there(client: Client, busy: tuple[World, int, int]) -> None:
    _, run, task = busy

    overview = page(client, "/")
    assert overview.index("chain") > 0
    assert re.search(r'class="dot f-failed".*class="dot f-running"', overview, re.S)  # oldest first
    assert "rolling default to r2" in overview
    assert "alone" not in page(client, "/?q=cha")
    assert "first" in page(client, "/dags/chain")
    assert f'href="/runs/{run}"' in page(client, "/runs?state=running")
    shown = page(client, f"/runs/{run}")
    assert "second" in shown
    assert 'aria-label="tasks by state"' in shown
    assert f"/tasks/{task}" not in page(client, f"/runs/{run}?state=waiting")
    told = page(client, f"/tasks/{task}")
    assert f"/api/v1/tasks/{task}/log?attempt=1" in told
    fleet = page(client, "/fleet")
    for word in ("draining", "roll 1, by ana", "1 / 4", "surge", "driven by n9"):
        assert word in fleet


def test_the_history_tells_of_code_and_rolls(client: Client, busy: tuple[World, int, int]) -> None:
    told = page(client, "/history")
    assert re.search(r'id="roll-1".*default.*>r2<.*s-running.*ana', told, re.S)
    assert re.search(r'id="code-1".*examples.*>v1<.*s-succeeded', told, re.S)
    rows = client.get("/api/v1/history").json()
    assert {r["id"] for r in rows} == {"roll-1", "code-1"}
    assert all(r["tasks"]["lost"] == 0 for r in rows)


def test_a_failed_try_is_told_on_the_task_page(client: Client, busy: tuple[World, int, int]) -> None:
    told = page(client, "/tasks/1")

    assert told.count('class="state s-failed"') == 3  # the task and both its attempts
    assert "will be retried: broke" in told


def test_what_people_write_is_never_markup(client: Client, busy: tuple[World, int, int]) -> None:
    _, run, task = busy
    for path in ("/", "/dags/chain", "/runs/1", f"/runs/{run}", "/tasks/1", f"/tasks/{task}", f"/?q={ODD}", f"/{ODD}"):
        assert "<img" not in client.get(path, headers={"Accept": "text/html"}).text, path
    assert "&lt;img" in page(client, "/tasks/1")


def test_a_newcomer_sees_what_to_do_next(client: Client, engine: Engine) -> None:
    assert "No pipelines yet" in page(client, "/")
    assert "runner dag trigger" in page(client, "/runs")
    assert "No node has registered yet" in page(client, "/fleet")
    assert "Nothing was changed yet" in page(client, "/history")


def test_htmx_gets_the_inner_part_of_the_same_page(client: Client, world: World) -> None:
    part = page(client, "/", **{"HX-Request": "true"})

    assert "<html" not in part
    assert "chain" in part
    assert "<html" in page(client, "/")  # and a browser that goes back never gets a part from the cache


def test_a_page_is_rendered_once_for_all_who_look(client: Client, world: World) -> None:
    first = page(client, "/runs")
    world.run()

    assert page(client, "/runs") == first  # within a second, and nothing heard of anything new
    client.app.state.context.hub.version += 1
    assert page(client, "/runs") != first


def test_buttons_work_without_scripts_and_with(client: Client, world: World) -> None:
    ours = {"Origin": client.origin, "Sec-Fetch-Site": "same-origin"}

    plain = client.post("/dags/chain/pause", data={"back": "/dags/chain"}, headers=ours)
    assert (plain.status_code, plain.headers["location"]) == (303, "/dags/chain")
    assert 'aria-checked="false"' in page(client, "/dags/chain")  # at once, in spite of the cache
    scripted = client.post("/dags/chain/unpause", headers={**ours, "HX-Request": "true"})
    assert scripted.headers["hx-trigger"] == "refresh"
    started = client.post("/dags/chain/trigger", headers={**ours, "HX-Request": "true"})
    assert started.headers["hx-redirect"] == "/runs/1"
    assert client.post("/dags/chain/explode", headers=ours).status_code == 400


def test_a_button_sends_nobody_elsewhere(client: Client, world: World) -> None:
    for back in ("//evil.example", "https://evil.example", "/\\evil.example"):
        answer = client.post("/dags/chain/pause", data={"back": back}, headers={"Origin": client.origin})

        assert answer.headers["location"] == "/"


def test_a_large_run_is_paged_and_folded(client: Client, world: World) -> None:
    tasks = [TaskSpec(task_id="start")] + [TaskSpec(task_id=f"load_{i}", upstream=("start",)) for i in range(700)]
    world.publish(DagSpec(dag_id="wide", tasks=tuple(tasks)), version="v2")
    run = world.run("wide")

    shown = page(client, f"/runs/{run}")

    assert shown.count('<tr id="t') == 200
    assert "page 1 of 4" in shown
    assert shown.count('class="box') == 2
    assert page(client, f"/runs/{run}?page=4").count('<tr id="t') == 101


def test_an_error_never_replaces_the_page_that_is_open(client: Client, world: World) -> None:
    """A browser gets a page that tells; htmx gets the message, to be shown above the page as it was."""
    whole = client.get("/runs/99", headers={"Accept": "text/html"})
    part = client.get("/runs/99", headers={"Accept": "text/html, text/event-stream", "HX-Request": "true"})

    assert (whole.status_code, part.status_code) == (404, 404)
    assert "no run 99" in whole.text
    assert "<html" in whole.text
    assert part.json()["error"] == "no run 99"
    assert '"noSwap":[204,304,"4xx","5xx"]' in page(client, "/")


def test_a_task_is_found_by_its_name(client: Client, world: World) -> None:
    run = world.run()

    assert client.get(f"/runs/{run}/tasks/second").headers["location"] == "/tasks/2"
    assert client.get(f"/runs/{run}/tasks/third").status_code == 404


def test_assets_are_served_and_need_no_network(client: Client, world: World) -> None:
    html = page(client, "/")
    sources = re.findall(r'(?:src|href)="(/static/[^"]+)"', html)
    assert len(sources) == 5
    for source in sources:
        assert client.get(source).status_code == 200
    assert not re.findall(r'(?:src|href)="https?://', html)
