"""heartbeat: a probe for every dependency."""

import datetime as dt
import time
from pathlib import Path
from typing import Any

import pytest

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def reachable(database_url: str, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_CONN_DATABASE", database_url)
    monkeypatch.setenv("SLUICE_VAR_HEARTBEAT_URL", f"http://{web.host}/")


def test_every_dependency_is_probed_and_quickly(reachable: None, example: Any, dag_test: Any, tmp_path: Path) -> None:
    ends: dict[str, str] = {}
    began = time.monotonic()
    found = example("heartbeat")["heartbeat"].test(
        NOON, storage_url=f"file://{tmp_path}/here", on_end=lambda task, state, _: ends.update({task: state})
    )
    took = time.monotonic() - began
    print(f"all probes: {took:.3f} s")
    assert took < 20  # under a second where the machine has nothing else to do
    assert found["http"] == 200 and found["storage"] == 16 and found["database"].startswith("test_")
    assert set(ends) == {"database", "storage", "http", "beat"}
    assert [p for p in (tmp_path / "here").rglob("*") if p.is_file()] == []  # it tidies up
    assert {t["state"] for t in dag_test("heartbeat", "heartbeat", NOON).values()} == {"success"}


def test_what_does_not_answer_is_named(
    reachable: None, example: Any, web: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    d = example("heartbeat")["heartbeat"]
    monkeypatch.setenv("SLUICE_VAR_HEARTBEAT_URL", f"http://{web.host}/gone")
    with pytest.raises(Exception, match="404") as raised:
        d.test(NOON, storage_url=f"file://{tmp_path}/here")
    assert "in task 'http'" in raised.value.__notes__[0]
