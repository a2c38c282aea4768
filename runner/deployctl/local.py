"""`deployctl local`: an AWS, a database, a broker and a fleet on this machine, brought up in one command."""

from __future__ import annotations

import shlex
import sys
import threading
from typing import Annotated

import typer

from runner.deployctl import local_view, output
from runner.deployctl.job import CancelledError
from runner.deployctl.local_cloud import LocalCloud
from runner.localcloud import state as local_state
from runner.localcloud.state import NodeKind
from runner.settings import SluiceError

app = typer.Typer(no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("up")
def up_command(
    nodes: Annotated[
        NodeKind | None,
        typer.Option(help="What an instance becomes: `processes` (anywhere), or `containers` (root on Linux)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring up the local cloud: engines, AWS, Terraform stacks, nodes. Safe to run again."""
    quick = LocalCloud(nodes=nodes)
    quick.check_nodes()
    if quick.started() and (fleet := quick.healthy()):
        output.note(f"already up: {len(fleet)} nodes, AWS at {quick.state.aws_endpoint}")
    else:
        interrupted = threading.Event()

        def said(first: bool) -> None:
            interrupted.set()
            output.note("stopping: each terraform finishes the step it is in; what runs stays" if first else "wait …")

        with local_view.Display() as display:
            cloud = LocalCloud(on_step=display, nodes=nodes)
            try:
                with cloud.cancel.on_signals(said):
                    cloud.up()
            except (SluiceError, CancelledError):
                if interrupted.is_set():
                    raise KeyboardInterrupt from None
                raise
        output.note(f"up: {local_view.hint(cloud.state)}")
    if as_json:
        output.print_json(quick.status().as_json())


@app.command("demo")
def demo_command(
    task_seconds: Annotated[float, typer.Option(min=0.0, help="How long each load of the pipeline takes.")] = 2.2,
) -> None:
    """Bring up the local cloud, run a real pipeline on it, roll every worker meanwhile, add one, and judge."""
    from runner.deployctl import demo

    raise typer.Exit(demo.run(task_seconds))


@app.command("down")
def down_command(
    keep: Annotated[bool, typer.Option("--keep", help="Keep the state directory with its logs.")] = False,
) -> None:
    """Stop the local cloud and remove its state directory."""
    cloud = LocalCloud()
    if not cloud.directory.is_dir():
        output.note(f"nothing to stop: no local cloud in {cloud.directory}")
        return
    with local_view.Display() as display:
        LocalCloud(on_step=display).down(keep=keep)


@app.command("env")
def env_command(as_json: JsonOption = False) -> None:
    """Print what makes a shell talk to the local cloud: eval "$(deployctl local env)"."""
    cloud = LocalCloud()
    state = local_state.load(cloud.directory)
    if not cloud.started():
        raise SluiceError(f"the local cloud in {cloud.directory} does not run", "run `deployctl local up`")
    values = {"SLUICE_LOCAL_DIR": str(cloud.directory)} | state.environment()
    if as_json:
        output.print_json(values)
        return
    lines = ["unset AWS_PROFILE AWS_SESSION_TOKEN", *(f"export {k}={shlex.quote(v)}" for k, v in values.items())]
    sys.stdout.write("\n".join(lines) + "\n")


@app.command("status")
def status_command(as_json: JsonOption = False) -> None:
    """Show the daemons, endpoints and nodes of the local cloud."""
    status = LocalCloud().status()
    if as_json:
        output.print_json(status.as_json())
    else:
        local_view.show(status)
