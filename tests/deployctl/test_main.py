from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from runner.deployctl import main
from runner.settings import RefusedError, SluiceError, UsageError


@pytest.fixture
def noun(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let `deployctl infra plan` raise something."""
    from runner.deployctl import infra

    def use(error: BaseException) -> None:
        def fail(*_args: object, **_more: object) -> None:
            raise error

        monkeypatch.setattr(infra.operations, "prepare", fail)

    return use


COMMAND = ["infra", "plan", "--env", "local"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SluiceError("it broke", "do this"), 1),
        (UsageError("it broke", "do this"), 2),
        (RefusedError("it broke", "do this"), 3),
    ],
)
def test_an_error_is_one_line_a_hint_and_its_exit_code(noun: Any, capsys: Any, error: SluiceError, code: int) -> None:
    noun(error)
    assert main.run(COMMAND) == code
    assert capsys.readouterr().err == "error: it broke\nhint: do this\n"


def test_a_traceback_comes_only_with_debug_wherever_it_stands(noun: Any, capsys: Any) -> None:
    noun(SluiceError("it broke"))
    for words in (["--debug", *COMMAND], [*COMMAND, "--debug"]):
        assert main.run(words) == 1
        assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_one_line_and_130(noun: Any, capsys: Any) -> None:
    noun(KeyboardInterrupt())
    assert main.run(COMMAND) == 130
    assert capsys.readouterr().err == "interrupted; nothing is lost: running the same command again goes on\n"


def test_a_missing_extra_names_what_to_install(noun: Any, capsys: Any) -> None:
    noun(ModuleNotFoundError("No module named 'python_terraform'", name="python_terraform"))
    assert main.run(COMMAND) == 1
    assert capsys.readouterr().err == (
        "error: deployctl infra plan needs the `deploy` extra (python_terraform is missing)\n"
        "hint: pip install 'sluice[deploy]'\n"
    )


def test_bad_usage_is_one_line_and_2(capsys: Any) -> None:
    assert main.run(["infra", "plan"]) == 2
    assert capsys.readouterr().err == "error: Missing option '--env'.\nhint: `deployctl infra plan --help`\n"
    assert main.run(["nonsense"]) == 2


def test_credentials_and_endpoints_that_fail_say_what_to_do() -> None:
    from botocore import exceptions as aws

    def client_error(code: str) -> Exception:
        return aws.ClientError({"Error": {"Code": code, "Message": "m"}}, "GetCallerIdentity")

    assert main.explain(aws.NoCredentialsError())[0] == "no AWS credentials found"
    assert main.explain(client_error("ExpiredToken"))[0] == "the AWS credentials have expired"
    assert "does not accept these credentials" in main.explain(client_error("InvalidClientTokenId"))[0]
    message, hint = main.explain(aws.EndpointConnectionError(endpoint_url="http://127.0.0.1:1"))
    assert message.startswith("cannot reach AWS") and "AWS_ENDPOINT_URL" in hint


def test_help_imports_no_noun() -> None:
    program = (
        "import sys; from runner.deployctl import main; code = main.run(['--help']); "
        "heavy = [m for m in ('boto3', 'sqlalchemy', 'runner.deployctl.infra') if m in sys.modules]; "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "infra" in done.stdout


def test_a_path_that_cannot_be_written_and_a_database_that_is_away_are_one_line_and_a_hint() -> None:
    import psycopg
    from sqlalchemy.exc import OperationalError

    message, hint = main.explain(PermissionError(13, "Permission denied", "/data/x"))
    assert (message, hint) == ("/data/x: Permission denied", "this user may not write there")
    error = OperationalError("SELECT 1", {}, psycopg.OperationalError("connection refused\nis it running?"))
    message, hint = main.explain(error)
    assert message == "cannot reach the database: connection refused"
    assert "SLUICE_DATABASE_URL" in hint
