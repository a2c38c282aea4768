"""`deployctl local` as somebody types it, without bringing anything up."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from runner.deployctl import main
from runner.deployctl.local_cloud import LocalCloud
from runner.localcloud.state import LocalState, save


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "it's here"
    monkeypatch.setenv("SLUICE_LOCAL_DIR", str(home))
    return home


def test_env_makes_a_shell_talk_to_the_local_cloud(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a local cloud that runs, in a directory whose name needs quotes
    url = f"postgresql://postgres@/sluice?host={home}&port=5432"
    save(LocalState(aws_endpoint="http://127.0.0.1:1", database_url=url), home)
    monkeypatch.setattr(LocalCloud, "started", lambda self: True)
    # When a shell takes what is printed
    assert main.run(["local", "env"]) == 0
    script = capsys.readouterr().out + 'printf "%s\\n" "$SLUICE_DATABASE_URL" "$AWS_ENDPOINT_URL" "${AWS_PROFILE-none}"'
    told = subprocess.run(
        ["sh", "-euc", script], env={"AWS_PROFILE": "work", "PATH": "/bin:/usr/bin"}, capture_output=True, text=True
    )
    # Then it has the endpoints, and no profile that would lead elsewhere
    assert told.stdout.splitlines() == [url, "http://127.0.0.1:1", "none"], told.stderr
    # And a program gets the same as JSON
    assert main.run(["local", "env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["SLUICE_DATABASE_URL"] == url


def test_env_of_a_cloud_that_does_not_run_prints_nothing_to_evaluate(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["local", "env"]) == 1
    save(LocalState(aws_endpoint="http://127.0.0.1:1"), home)
    assert main.run(["local", "env"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("run `deployctl local up`") == 2


def test_a_state_directory_that_is_a_file_is_one_clear_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.write_text("")
    for verb in ("up", "status"):
        assert main.run(["local", verb]) == 2
        assert capsys.readouterr().err.startswith(f"error: {home} is not a directory\nhint: SLUICE_LOCAL_DIR")


def test_a_database_that_does_not_answer_says_how_to_get_it_back(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", os.environ.copy())
    save(LocalState(aws_endpoint="http://127.0.0.1:1", database_url="postgresql://postgres@127.0.0.1:1/x"), home)
    assert main.run(["fleet", "status", "--env", "local"]) == 1
    assert capsys.readouterr().err == (
        "error: the database of the local cloud does not answer\nhint: `deployctl local up` starts it again\n"
    )
