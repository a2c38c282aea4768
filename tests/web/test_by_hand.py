"""Clear, mark and kill: over the API, and with the buttons of the pages."""

from __future__ import annotations

from .conftest import Client, World


def test_a_failed_task_runs_again(client: Client, world: World) -> None:
    # Given a run whose first task has failed for good
    run = world.run()
    for _ in range(2):
        world.finish(*world.start(), result="failed", error="no rows")
    assert client.get(f"/api/v1/runs/{run}").json()["state"] == "failed"
    # When what failed is cleared
    answer = client.post(f"/api/v1/runs/{run}/clear", json={"only_failed": True}, headers={"X-Sluice-Client": "t"})
    # Then it and what is after it are to run again, and the run is under way
    assert answer.json() == {"task_instances": 2}
    found = client.get(f"/api/v1/runs/{run}").json()
    assert found["state"] == "running"
    assert {t["task_id"]: t["state"] for t in found["task_instances"]} == {"first": "ready", "second": "waiting"}


def test_mark_and_kill(client: Client, world: World) -> None:
    run = world.run()
    headers = {"X-Sluice-Client": "t"}
    # A task that has not started is done when people say so, and what follows may start
    marked = client.post(f"/api/v1/runs/{run}/mark", json={"tasks": ["first"], "state": "success"}, headers=headers)
    assert marked.json() == {"task_instances": 1}
    (claim,) = world.start()
    assert claim.task_id == "second"
    # What runs is told to end, and has failed then, whatever it says
    client.post(f"/api/v1/runs/{run}/kill", headers=headers)
    world.finish(claim)
    found = client.get(f"/api/v1/runs/{run}").json()
    assert found["state"] == "failed"
    assert next(t["error"] for t in found["task_instances"] if t["task_id"] == "second") == "killed by api"


def test_the_buttons_work_without_scripts(client: Client, world: World) -> None:
    run = world.run()
    (claim,) = world.start()
    page = client.get(f"/tasks/{claim.task_instance}").text
    assert f'action="/runs/{run}/kill"' in page and f'action="/runs/{run}/success"' in page
    answer = client.post(
        f"/runs/{run}/success",
        data={"task": "first", "back": f"/tasks/{claim.task_instance}"},
        headers={"Origin": client.origin},
    )
    assert (answer.status_code, answer.headers["location"]) == (303, f"/tasks/{claim.task_instance}")
    world.finish(claim, result="failed")
    assert client.get(f"/api/v1/tasks/{claim.task_instance}").json()["state"] == "success"
    assert f'action="/runs/{run}/kill"' in client.get(f"/runs/{run}").text


def test_what_is_not_there_is_said(client: Client, world: World) -> None:
    run = world.run()
    headers = {"X-Sluice-Client": "t"}
    assert client.post("/api/v1/runs/999/clear", headers=headers).status_code == 404
    wrong = client.post(f"/api/v1/runs/{run}/kill", json={"tasks": ["nothing"]}, headers=headers)
    assert wrong.status_code == 400 and "no task 'nothing'" in wrong.json()["error"]
    other = client.post(f"/runs/{run}/explode", headers={"Origin": client.origin})
    assert other.status_code == 400


def test_a_span_is_filled_from_the_page(client: Client, world: World) -> None:
    # Given a DAG with a schedule, then its page has a form; two dates fill the days between
    assert 'action="/dags/chain/backfill"' in client.get("/dags/chain").text
    origin = {"Origin": client.origin}
    form = {"from": "2026-03-02", "to": "2026-03-04", "which": "missing", "back": "/dags/chain"}
    assert client.post("/dags/chain/backfill", data=form, headers=origin).status_code == 303
    (found,) = client.get("/api/v1/backfills").json()
    assert (found["dag_id"], found["state"], found["total"]) == ("chain", "running", 3)
    assert "0 / 3" in client.get("/dags/chain").text
    assert client.post("/backfills/1/pause", data={"back": "/dags/chain"}, headers=origin).status_code == 303
    assert 'action="/backfills/1/resume"' in client.get("/dags/chain").text
    # and what makes no sense is said
    assert client.post("/dags/chain/backfill", data={**form, "from": ""}, headers=origin).status_code == 400


def test_backfills_over_the_api(client: Client, world: World) -> None:
    headers = {"X-Sluice-Client": "t"}
    span = {"start": "2026-03-02T00:00:00Z", "end": "2026-03-04T00:00:00Z"}
    dry = client.post("/api/v1/dags/chain/backfills", json={**span, "dry_run": True}, headers=headers)
    assert dry.json() == {"backfill": None, "runs": 3, "left": 0}
    filed = client.post("/api/v1/dags/chain/backfills", json=span, headers=headers)
    assert filed.json() == {"backfill": 1, "runs": 3, "left": 0}
    assert client.post("/api/v1/backfills/1/cancel", headers=headers).json()["state"] == "cancelled"
    assert client.post("/api/v1/dags/nothing/backfills", json=span, headers=headers).status_code == 404
