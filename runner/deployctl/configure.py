"""`deployctl configure`: the roles of ansible/ over the running hosts of an environment.

Safe at any hour: what runs is not restarted for it, and what is as it should be is not touched.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from runner.deployctl import environment, output
from runner.deployctl.configure_view import Display, Host, Tally
from runner.deployctl.environment import Environment
from runner.settings import SluiceError, UsageError


class _Stopped(SluiceError):
    """Ctrl-C: the hosts are between two tasks."""

    exit_code = 130


def configure(
    env: str = typer.Option(..., "--env", help="The environment."),
    limit: str = typer.Option(
        "", "--limit", metavar="PATTERN", help="Only these hosts: ids or groups such as role_worker, by commas."
    ),
    check: bool = typer.Option(False, "--check", help="Change nothing, and show what would change."),
    tag: list[str] = typer.Option([], "--tag", help="Only these plays: base, worker, scheduler, web, monitoring."),
    variable: list[str] = typer.Option(
        [], "--var", metavar="NAME=VALUE", help="A variable of a role; may be repeated."
    ),
    forks: int = typer.Option(20, "--forks", min=1, help="Hosts to work on at once."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Bring every host of an environment to what the roles say, or show what differs.

    No task is ended by it: the release that runs, and when a worker stops, are the business of a roll.
    """
    where = environment.load(env)
    variables = dict(_pair(text) for text in variable)
    environ = environment.process_environ(where)
    inventory = inventory_of(where)
    environment.check_account(where, environ)
    tally = Tally()
    with Display(tally, show_diffs=check) as display:
        status, said = play(
            inventory, environ, display, limit=limit, check=check, tags=tag, variables=variables, forks=forks
        )
    hosts = tally.hosts()
    if as_json:
        output.print_json([vars(h) for h in hosts])
    elif hosts:
        _show(hosts, check)
    _judge(hosts, status, said, env, limit)


def inventory_of(env: Environment) -> Path:
    """The dynamic inventory of an environment. Raises UsageError if it has none."""
    path = env.tree.parent / "ansible" / "inventory" / f"{env.name}.aws_ec2.yml"
    if not path.is_file():
        raise UsageError(f"{path} does not exist", "copy that of another environment and change its filter `tag:Env`")
    return path


def play(
    inventory: Path,
    environ: Mapping[str, str],
    display: Display,
    *,
    limit: str = "",
    check: bool = False,
    tags: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    forks: int = 20,
) -> tuple[str, str]:
    """Run site.yml over an inventory. Returns how it ended (successful, failed, canceled, …) and its last words."""
    from ansible_runner.interface import run

    tree = inventory.parent.parent
    cmdline = [*(["--check", "--diff"] if check else ["--diff"]), *(["--tags", ",".join(tags)] if tags else [])]
    programs = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(prefix="sluice-configure-") as scratch:
        done = run(  # type: ignore[no-untyped-call]
            private_data_dir=scratch,
            project_dir=str(tree),
            playbook=str(tree / "site.yml"),
            inventory=str(inventory),
            envvars={
                **environ,
                "PATH": f"{programs}{os.pathsep}{environ.get('PATH', os.defpath)}",
                "ANSIBLE_CONFIG": str(tree / "ansible.cfg"),
                "ANSIBLE_FORCE_COLOR": "false",  # ansible-runner asks for colours, and the last words are shown
                "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",
            },
            extravars=dict(variables or {}),
            limit=limit or None,
            forks=forks,
            cmdline=" ".join(cmdline),
            suppress_env_files=True,
            quiet=True,
            settings={"suppress_ansible_output": True},
            event_handler=display.event,
        )
        with done.stdout as words:
            return str(done.status), words.read()


def _judge(hosts: Sequence[Host], status: str, said: str, env: str, limit: str) -> None:
    """Raise what makes the exit status, unless all went well."""
    if status == "canceled":
        raise _Stopped("stopped between two tasks; running the same command again goes on")
    bad = [h for h in hosts if h.result in ("failed", "unreachable")]
    if bad:
        raise SluiceError(
            f"{len(bad)} of {len(hosts)} hosts: {', '.join(h.name for h in bad[:5])}{' …' if len(bad) > 5 else ''}",
            "what failed is in the table; the other hosts are done. The same command goes on from here",
        )
    if not hosts:
        if status == "successful" or "no hosts to target" in said:
            raise UsageError(
                f"no running instance of {env}{f' matches {limit!r}' if limit else ''}",
                f"`ansible-inventory -i ansible/inventory/{env}.aws_ec2.yml --graph` lists hosts and groups",
            )
        raise SluiceError(f"ansible failed before it reached a host: {_reason(said)}", "run it again with --debug")
    if status != "successful":
        raise SluiceError(f"ansible ended with {status}: {_reason(said)}")


def _reason(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line]
    return (errors or lines or ["it said nothing"])[-1]


def _show(hosts: Sequence[Host], check: bool) -> None:
    rows = [
        (h.name, ("would change" if check and h.result == "changed" else h.result), h.ok, h.changed or "", h.what)
        for h in hosts
    ]
    output.print_table(["host", "result", "?#ok", "#changed", "~what"], rows)


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--var {text}: it must be NAME=VALUE", "the roles' defaults/main.yml list the names")
    return name, value
