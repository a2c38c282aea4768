from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from runner.settings import Settings
from runner.storage import LogWriter, Storage, log_prefix

from .conftest import Client, World, serve


def test_lists_are_json_and_documented(client: Client, world: World) -> None:
    run = world.run()
    claims = world.start()

    dags = client.get("/api/v1/dags").json()
    assert [d["dag_id"] for d in dags] == ["alone", "chain"]
    assert dags[1]["recent"][0] == {"id": run, "state": "running", "logical_date": "2026-03-01T12:00:00Z"}
    assert client.get("/api/v1/dags/chain").json()["spec"]["tasks"][1]["upstream"] == ["first"]
    assert client.get("/api/v1/dags/chain/runs").json()[0]["id"] == run
    assert client.get("/api/v1/runs", params={"state": "failed"}).json() == []
    detail = client.get(f"/api/v1/runs/{run}").json()
    assert detail["counts"] == {"running": 1, "waiting": 1}
    assert [t["task_id"] for t in detail["task_instances"]] == ["first", "second"]
    assert (
        client.get(f"/api/v1/runs/{run}", params={"state": "waiting"}).json()["task_instances"][0]["task_id"]
        == "second"
    )
    task = client.get(f"/api/v1/tasks/{claims[0].task_instance}").json()
    assert [e["state"] for e in task["events"]] == ["queued", "running"]
    assert client.get("/api/v1/fleet").json()[0]["running"] == 1
    assert client.get("/api/v1/queues").json()[0]["queue"] == "default"
    assert client.get("/api/v1/rollouts").json() == []
    assert client.get("/api/v1/counts").json()["tasks_running"] == 1
    newest = client.get("/api/v1/events", params={"limit": 1}).json()[0]["id"]
    assert client.get("/api/v1/events", params={"after_id": newest}).json() == []

    paths = client.get("/api/openapi.json").json()["paths"]
    for path in ("/dags/{dag_id}/runs", "/runs/{run_id}", "/tasks/{task_instance_id}/log", "/stream", "/fleet"):
        assert f"/api/v1{path}" in paths


def test_a_trigger_creates_a_run_once_a_date(client: Client, world: World) -> None:
    body = {"logical_date": "2026-03-02T00:00:00+01:00", "params": {"day": 2}}

    first = client.post("/api/v1/dags/chain/runs", json=body)
    again = client.post("/api/v1/dags/chain/runs", json=body)
    now = client.post("/api/v1/dags/chain/runs", headers={"X-Sluice-Client": "test"})

    assert first.status_code == 201
    run = client.get(f"/api/v1/runs/{first.json()['run_id']}").json()
    assert (run["logical_date"], run["params"], run["run_type"]) == ("2026-03-01T23:00:00Z", {"day": 2}, "manual")
    assert again.status_code == 409
    assert "has a run of 2026-03-02T00:00:00+01:00 already" in again.json()["error"]
    assert now.status_code == 201


def test_a_dag_that_left_its_bundle_is_not_triggered(client: Client, world: World) -> None:
    world.sql("UPDATE dag SET active = false WHERE dag_id = 'chain'")

    answer = client.post("/api/v1/dags/chain/runs", json={})

    assert answer.status_code == 409
    assert "no longer in its bundle" in answer.json()["error"]


def test_pausing_is_recorded_and_repeatable(client: Client, world: World) -> None:
    for _ in range(2):
        assert client.post("/api/v1/dags/chain/pause", json={}).json() == {"dag_id": "chain", "paused": True}

    assert client.get("/api/v1/dags/chain").json()["paused"] is True
    events = [e for e in client.get("/api/v1/events").json() if e["kind"] == "dag"]
    assert [(e["subject"], e["state"]) for e in events] == [("chain", "paused")]
    assert client.post("/api/v1/dags/chain/unpause", json={}).json()["paused"] is False


ERRORS = [
    ("GET", "/api/v1/dags/nix", 404, "no DAG 'nix'"),
    ("GET", "/api/v1/dags/nix/runs", 404, "no DAG 'nix'"),
    ("GET", "/api/v1/runs/99", 404, "no run 99"),
    ("GET", "/api/v1/tasks/99", 404, "no task instance 99"),
    ("GET", "/api/v1/runs?state=odd", 422, "state: "),
    ("GET", "/api/v1/nix", 404, "there is no page /api/v1/nix"),
    ("POST", "/api/v1/dags/nix/runs", 404, "no DAG 'nix'"),
    ("POST", "/api/v1/dags/nix/pause", 404, "no DAG 'nix'"),
]


def test_errors_say_what_and_what_to_do(client: Client, world: World) -> None:
    for method, path, status, error in ERRORS:
        answer = client.request(method, path, headers={"X-Sluice-Client": "test"})

        assert answer.status_code == status, path
        assert set(answer.json()) == {"error", "hint"}
        assert answer.json()["error"].startswith(error)
        assert answer.json()["hint"]


def test_a_naive_date_is_refused(client: Client, world: World) -> None:
    answer = client.post("/api/v1/dags/chain/runs", json={"logical_date": "2026-03-02T00:00:00"})

    assert answer.status_code == 422
    assert answer.json()["error"].startswith("logical_date: ")


def test_a_log_is_read_piece_by_piece_while_it_grows(client: Client, world: World, tmp_path: Path) -> None:
    run = world.run()
    (claim,) = world.start()
    url = f"/api/v1/tasks/{claim.task_instance}/log"
    assert client.get(url).json() == {"attempt": 1, "text": "", "next": 0, "complete": False}

    writer = LogWriter(Storage.open(f"file://{tmp_path}/store"), log_prefix("chain", run, "first", 1))
    writer.append(b"one\n")
    first = client.get(url).json()
    writer.append("zwei ü\n".encode())
    second = client.get(url, params={"from": first["next"]}).json()
    world.finish(claim)
    last = client.get(url, params={"from": second["next"]}).json()

    assert (first["text"], second["text"], last["text"]) == ("one\n", "zwei ü\n", "")
    assert (first["complete"], second["complete"], last["complete"]) == (False, False, True)


def test_without_a_log_store_it_says_what_to_set(settings: Settings, world: World) -> None:
    world.run()
    (claim,) = world.start()
    bare = settings.model_copy(update={"storage_url": ""})
    with serve(bare) as client:
        answer = client.get(f"/api/v1/tasks/{claim.task_instance}/log")

    assert answer.status_code == 502
    assert "SLUICE_STORAGE_URL" in answer.json()["hint"]


# --- who may change something --------------------------------------------------------------------------------


CALLERS: list[tuple[dict[str, str], bool]] = [
    ({"Sec-Fetch-Site": "same-origin", "Origin": "OURS"}, True),
    ({"Content-Type": "application/json"}, True),
    ({"X-Sluice-Client": "curl"}, True),
    ({}, False),
    ({"Content-Type": "text/plain"}, False),
    ({"Sec-Fetch-Site": "cross-site", "X-Sluice-Client": "curl"}, False),
    ({"Origin": "http://evil.example", "Content-Type": "application/json"}, False),
    ({"Origin": "null", "X-Sluice-Client": "curl"}, False),
]


def test_only_our_own_pages_and_clients_change_something(client: Client, world: World) -> None:
    for headers, allowed in CALLERS:
        sent = {k: v.replace("OURS", client.origin) for k, v in headers.items()}
        answer = client.post("/api/v1/dags/chain/pause", headers=sent)

        assert answer.status_code == (200 if allowed else 403), headers
        assert client.get("/api/v1/dags/chain").json()["paused"] is allowed
        client.post("/api/v1/dags/chain/unpause", json={})


def test_a_name_pointed_at_loopback_is_not_served(client: Client, world: World) -> None:
    assert client.get("/api/v1/dags", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/api/v1/dags", headers={"Host": "localhost:8080"}).status_code == 200


def test_every_answer_forbids_foreign_scripts(client: Client, world: World) -> None:
    for path in ("/", "/api/v1/dags", "/nix", "/static/app.js"):
        policy = client.get(path).headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy


# --- the database is away --------------------------------------------------------------------------------------


def test_health_tells_whether_the_database_answers(client: Client, settings: Settings, world: World) -> None:
    assert client.get("/health").json()["status"] == "ok"

    away = settings.model_copy(update={"database_url": "postgresql://postgres@127.0.0.1:1/none"})
    with serve(away) as lost:
        health = lost.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "degraded")
        answer = lost.get("/api/v1/dags")
        assert (answer.status_code, answer.json()["error"]) == (503, "the database does not answer")
        page = lost.get("/", headers={"Accept": "text/html"})
        assert page.status_code == 503
        assert "the database does not answer" in page.text


def test_metrics_are_served_to_prometheus_and_to_no_other_site(client: Client, world: World) -> None:
    world.run()

    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert 'sluice_queue_tasks{queue="default",state="ready"} 1.0' in answer.text
    assert answer.text.endswith("# EOF\n")
    plain = client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert {m.name for m in text_string_to_metric_families(plain.text)} >= {"sluice_nodes", "sluice_runs"}
    assert client.get("/metrics", headers={"Host": "evil.example"}).status_code == 403


def test_params_are_checked_and_an_asset_is_updated_from_outside(client: Client, world: World) -> None:
    from runner.authoring import DAG, Asset, Param, task
    from runner.state import bundles

    @task
    def t() -> None: ...

    with DAG("typed", schedule=Asset("a"), params={"n": Param(3, type="integer")}) as typed:
        t()
    with world.engine.begin() as c:
        bundles.register_and_activate(c, version="v9", name="c", url="", size=1, specs=[typed.spec()], who="t")

    wrong = client.post("/api/v1/dags/typed/runs", json={"params": {"n": "x"}})
    assert wrong.status_code == 400
    assert "'x' is not of type 'integer'" in wrong.json()["error"]
    assert client.post("/api/v1/assets/events", json={"asset": "a", "extra": {"k": 1}}).json() == {"waiting": 1}
    assert client.post("/api/v1/assets/events", json={"asset": "b"}).status_code == 400
    (row,) = client.get("/api/v1/assets").json()
    assert (row["asset"], row["used_by"]) == ("a", ["typed"])
