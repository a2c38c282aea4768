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
