"""`deployctl env`: environments, made from nothing in one command and removed to nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from runner.deployctl import environment, infra, locks, output, stacks
from runner.deployctl.environment import Environment
from runner.deployctl.job import PARALLEL, Job, prepare
from runner.settings import RefusedError, SluiceError, UsageError

TEMPLATE = "dev"
# In an environment's folder from its first file to the end of its first apply: create goes on where it finds it.
_MARKER = ".creating"
_COMMON = "common.tfvars"
_NAME = re.compile(r"[a-z][a-z0-9]{1,11}")  # what the stacks' variable `env` allows
_OWN = ("env", "region", "account_id", "state_bucket")

app = typer.Typer(no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="The environment: 2 to 12 lower-case letters and digits.")]


def begin(
    name: str,
    *,
    template: str = "",
    region: str = "",
    account_id: str = "",
    tree: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Environment:
    """Write the folder of a new environment and make its state bucket; what was begun before is gone on with.

    A folder that is there is taken as it is. Else it becomes a copy of the template's, with the account of the
    credentials in force unless one is given.

    Raises RefusedError if the environment exists or the credentials are of another account, UsageError.
    """
    tree = tree or environment.find_tree()
    folder = tree / "envs" / name
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"an environment cannot be named {name!r}", "2 to 12 lower-case letters and digits, a letter first"
        )
    if folder.is_dir() and (template or region or account_id):
        raise UsageError(
            f"{folder} is there and says what the environment is", "leave --from, --region and --account out"
        )
    if not folder.is_dir():
        _write_folder(folder, template or TEMPLATE, region, account_id, tree, environ)
    env = environment.load(name, tree)
    child = environment.process_environ(env, environ)
    environment.check_account(env, child)
    marker = folder / _MARKER
    if environment.state_bucket_exists(env, child) and not marker.exists():
        raise RefusedError(
            f"the environment {name} exists: its state bucket {env.state_bucket} is there",
            f"`deployctl infra apply --env {name}` changes it",
        )
    marker.touch()
    environment.create_state_bucket(env, child)
    return env


def finish(env: Environment) -> None:
    """Say that the environment is whole: from now on create refuses it."""
    (env.tree / "envs" / env.name / _MARKER).unlink(missing_ok=True)


def delete(job: Job) -> None:
    """Remove what is left of an environment whose stacks are destroyed: the state stack, the states, their bucket.

    Raises RefusedError if another stack stands or a state is locked.
    """
    env = job.env
    standing = job.standing()
    above = [n for n in standing if n != stacks.STATE]
    if above:
        raise RefusedError(
            f"{', '.join(above)} still stand{'s' if len(above) == 1 else ''} in {env.name}",
            f"destroy {'it' if len(above) == 1 else 'them'} first: `deployctl infra destroy --env {env.name}`",
        )
    held = locks.held(env, job.graph, job.environ)
    if held:
        raise RefusedError(f"{held[0].stack}: the state is locked by {held[0].lock.line()}", "wait for it")
    if stacks.STATE in standing:
        # The bucket cannot be destroyed by the state that is in it. Terraform lets go of it, destroys the rest, and
        # then it is emptied and removed.
        space = job.workspace(stacks.STATE)
        space.remove_from_state([r.address for r in standing[stacks.STATE] if r.type.startswith("aws_s3_bucket")])
        if len(standing[stacks.STATE]) > sum(r.type.startswith("aws_s3_bucket") for r in standing[stacks.STATE]):
            space.apply(space.plan(job.variables_of(stacks.STATE), destroy=True, details=False))
    environment.delete_state_bucket(env, job.environ)
    shutil.rmtree(env.data("", job.environ), ignore_errors=True)


def _write_folder(
    folder: Path, template: str, region: str, account_id: str, tree: Path, environ: Mapping[str, str] | None
) -> None:
    model = environment.load(template, tree)
    region = region or model.region
    account_id = account_id or environment.account_of(region, environ)
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(tree / "envs" / template, new, ignore=shutil.ignore_patterns(_MARKER))
    own = dict(zip(_OWN, (folder.name, region, account_id, f"sluice-{folder.name}-state-{account_id}"), strict=True))
    (new / _COMMON).write_text(_common(own, (new / _COMMON).read_text()))
    state = new / f"{stacks.STATE}.tfvars"
    if (tree / "stacks" / stacks.STATE).is_dir() and not state.exists():
        state.write_text("# The bucket with the states, and who may reach it from outside.\n")
    (new / _MARKER).touch()
    new.rename(folder)  # whole or not at all


def _common(own: Mapping[str, str], template: str) -> str:
    """The common values of a new environment: its own, then what else the template says."""
    width = max(map(len, own))
    rest = [row for row in template.splitlines() if not re.match(rf"#|({'|'.join(_OWN)})\s*=", row)]
    lines = [f'{key:<{width}} = "{value}"' for key, value in own.items()]
    return "\n".join([*lines, *rest]).rstrip() + "\n"


@app.command("create")
def create_command(
    name: NameArgument,
    template: Annotated[
        str, typer.Option("--from", help=f"The environment whose values it starts with (default: {TEMPLATE}).")
    ] = "",
    region: Annotated[str, typer.Option(help="AWS region (default: the template's).")] = "",
    account: Annotated[str, typer.Option(help="AWS account (default: the one of your credentials).")] = "",
    var: infra.VarOption = None,
    yes: infra.YesOption = False,
    parallel: infra.ParallelOption = PARALLEL,
) -> None:
    """Make an environment from nothing: its values, its state bucket, all its stacks. Run again, it goes on."""
    env = begin(name, template=template, region=region, account_id=account)
    output.note(f"{env.tree / 'envs' / name}: account {env.account_id}, {env.region}, {', '.join(env.stacks())}")
    output.note(f"{env.state_bucket}: versioned, encrypted, private, TLS only")
    try:
        infra.apply_command(env=name, var=var, yes=yes, parallel=parallel)
    except SluiceError as e:
        e.hint = f"{e.hint}; then `deployctl env create {name}` goes on".lstrip("; ")
        raise
    finish(env)
    output.note(f"{name} is there; keep {env.tree / 'envs' / name} under version control")


@app.command("list")
def list_command(as_json: infra.JsonOption = False) -> None:
    """Show the environments there are files for."""
    tree = environment.find_tree()
    found = [environment.load(p.parent.name, tree) for p in sorted((tree / "envs").glob(f"*/{_COMMON}"))]
    if as_json:
        output.print_json([_as_json(e) for e in found])
    else:
        output.print_table(
            ["environment", "account", "region", "?~stacks"],
            [(e.name, e.account_id, e.region, ", ".join(e.stacks())) for e in found],
        )


@app.command("delete")
def delete_command(name: NameArgument, yes: infra.YesOption = False) -> None:
    """Remove the states of an environment whose stacks are destroyed, and their bucket. Keeps its folder."""
    job = prepare(name)
    if not yes:
        output.note(f"This removes every version of every state of {name}: {job.env.state_bucket}.")
        if not output.confirm("There is no way back.", answer=name):
            raise RefusedError("not confirmed: nothing was removed", "")
    delete(job)
    output.note(f"{name} is gone; terraform/envs/{name} is still there, for `deployctl env create {name}`")


def _as_json(env: Environment) -> dict[str, Any]:
    return {"name": env.name, "account": env.account_id, "region": env.region, "stacks": env.stacks()}
