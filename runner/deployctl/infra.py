"""`deployctl infra`: Terraform's stacks of an environment, in dependency order, and the same for other Python code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from runner.deployctl import environment, operations, output, terraform
from runner.deployctl.operations import CancelledError, OnEvent, StackResult, StacksFailedError
from runner.deployctl.progress import Display
from runner.settings import UsageError

_NOT_LISTED = 12  # more additions than this are counted, not listed, before an apply

app = typer.Typer(no_args_is_help=True)

EnvOption = Annotated[str, typer.Option("--env", help="Environment: a folder of terraform/envs.")]
StackOption = Annotated[list[str] | None, typer.Option("--stack", help="Only this stack; may be repeated.")]
VarOption = Annotated[
    list[str] | None,
    typer.Option("--var", metavar="NAME=VALUE", help="A Terraform variable, for the stacks that have it."),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


# The same for other code: no terminal, no questions, safe to call from any thread.


def apply(
    env: str,
    stacks: Iterable[str] = (),
    *,
    variables: Mapping[str, Any] | None = None,
    yes: bool = True,
    allow_destroy: bool = False,
    refresh: bool = True,
    on_event: OnEvent | None = None,
    cancel: terraform.Cancel | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[StackResult]:
    """Apply stacks (all of them by default) in dependency order and return how each ended.

    A variable that is text is read as on terraform's command line, any other by its type. `environ` is the
    environment of terraform and the AWS clients (default: this process's, with the running local cloud's for
    env `local`). `refresh=False` trusts the state and saves the reading of every resource. `cancel.cancel()`
    from another thread stops it cleanly.

    Raises UsageError, RefusedError, StacksFailedError (has `.results`), CancelledError (has `.results`).
    """
    job = operations.prepare(env, stacks, variables=variables, on_event=on_event, cancel=cancel, environ=environ)
    confirm = None if yes else _confirm_plans
    return operations.apply(job, confirm=confirm, allow_destroy=allow_destroy, refresh=refresh)


def plan(
    env: str,
    stacks: Iterable[str] = (),
    *,
    variables: Mapping[str, Any] | None = None,
    refresh: bool = True,
    on_event: OnEvent | None = None,
    cancel: terraform.Cancel | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[StackResult]:
    """What apply() would do now; changes nothing. Arguments and errors as there."""
    job = operations.prepare(env, stacks, variables=variables, on_event=on_event, cancel=cancel, environ=environ)
    return operations.plan(job, refresh=refresh)


def destroy(
    env: str,
    stacks: Iterable[str] = (),
    *,
    variables: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
    cancel: terraform.Cancel | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[StackResult]:
    """Destroy stacks, dependents first, without asking. Arguments and errors as in apply()."""
    job = operations.prepare(env, stacks, variables=variables, on_event=on_event, cancel=cancel, environ=environ)
    return operations.destroy(job)


def outputs(
    env: str, stacks: Iterable[str] = (), *, environ: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """The outputs of the applied stacks, by stack. Errors as in apply()."""
    return operations.outputs(operations.prepare(env, stacks, environ=environ))


def bootstrap(env: str, *, environ: Mapping[str, str] | None = None) -> bool:
    """Create the state bucket; False if it was there (its settings are put right all the same)."""
    found = environment.load(env)
    child = environment.process_environ(found, environ)
    environment.check_account(found, child)
    return environment.create_state_bucket(found, child)


# The command line.


@app.command("bootstrap")
def bootstrap_command(env: EnvOption) -> None:
    """Create the bucket that keeps the state of this environment. Safe to run again."""
    created = bootstrap(env)
    bucket = environment.load(env).state_bucket
    output.note(f"{bucket} {'created' if created else 'was there already'}: versioned, encrypted, private, TLS only")


@app.command("plan")
def plan_command(
    env: EnvOption,
    stack: StackOption = None,
    var: VarOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an apply would change."""

    def work(job: operations.Job, _display: Display) -> list[StackResult]:
        return operations.plan(job)

    results = _run(env, stack, var, work, as_json)
    if not as_json:
        for result in results:
            _show_changes(result, everything=True)


@app.command("apply")
def apply_command(
    env: EnvOption,
    stack: StackOption = None,
    var: VarOption = None,
    yes: YesOption = False,
    allow_destroy: Annotated[
        bool, typer.Option("--allow-destroy", help="Let the plan destroy databases, buckets, networks and groups.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the stacks what their code says: plan, confirm, apply the saved plan."""

    def work(job: operations.Job, display: Display) -> list[StackResult]:
        def ask(plans: Sequence[StackResult]) -> bool:
            with display.paused(), job.cancel.asking():
                return _confirm_plans(plans)

        return operations.apply(job, confirm=None if yes else ask, allow_destroy=allow_destroy)

    _run(env, stack, var, work, as_json)


@app.command("destroy")
def destroy_command(
    env: EnvOption,
    stack: StackOption = None,
    var: VarOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take the stacks down, dependents first. Asks for the environment's name."""

    def work(job: operations.Job, display: Display) -> list[StackResult]:
        def ask(standing: Mapping[str, int]) -> bool:
            what = ", ".join(f"{name} ({count} resources)" for name, count in standing.items())
            with display.paused(), job.cancel.asking():
                output.note(f"This destroys, in {env} (account {job.env.account_id}): {what}.")
                return output.confirm("There is no way back.", answer=env)

        return operations.destroy(job, confirm=None if yes else ask)

    _run(env, stack, var, work, as_json)


@app.command("output")
def output_command(env: EnvOption, stack: StackOption = None, as_json: JsonOption = False) -> None:
    """Print the outputs of the applied stacks."""
    found = outputs(env, stack or ())
    if as_json:
        output.print_json(found)
        return
    rows = [(name, key, _text(value)) for name, values in found.items() for key, value in values.items()]
    if rows:
        output.print_table(["stack", "output", "value"], rows)
    else:
        output.note(f"nothing is applied in {env}")


@app.command("unlock")
def unlock_command(
    env: EnvOption,
    stack: Annotated[str, typer.Option("--stack", help="The stack whose state is locked.")],
    lock_id: Annotated[str, typer.Option("--id", help="The id that the error message gave.")],
) -> None:
    """Take away a state lock whose holder is dead. Never one of a run that is alive."""
    job = operations.prepare(env, [stack])
    job.workspace(stack).unlock(lock_id)
    output.note(f"{stack}: unlocked")


def _run(
    env: str,
    stack: list[str] | None,
    var: list[str] | None,
    work: Callable[[operations.Job, Display], list[StackResult]],
    as_json: bool,
) -> list[StackResult]:
    """Prepare, show progress, let Ctrl-C cancel cleanly, print the outcome."""
    cancel = terraform.Cancel()
    job = operations.prepare(env, stack or (), variables=parse_variables(var or ()), cancel=cancel)
    display = Display(job.names)
    job.on_event = display

    def said(first: bool) -> None:
        output.note(
            "stopping: each terraform finishes the step it is in and gives its lock back"
            if first
            else "already stopping; a second signal would leave the state locked, so none is sent"
        )

    results: list[StackResult] = []
    try:
        with display, cancel.on_signals(said):
            results = work(job, display)
    except CancelledError as e:
        results = e.results
        raise KeyboardInterrupt from None
    except StacksFailedError as e:
        results = e.results
        raise
    finally:
        if as_json:
            output.print_json([r.as_json() for r in results])
        elif results:
            _show_results(results)
    return results


def parse_variables(words: Iterable[str]) -> dict[str, str]:
    """Read `NAME=VALUE` words. Raises UsageError for one that is not."""
    out = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--var {word!r} is not NAME=VALUE", "for example --var 'workers={default=3}'")
        out[name] = value
    return out


def _confirm_plans(plans: Sequence[StackResult]) -> bool:
    for result in plans:
        _show_changes(result, everything=False)
    return output.confirm(f"Apply {'this' if len(plans) == 1 else 'these'}?")


def _show_changes(result: StackResult, *, everything: bool) -> None:
    """List what a plan touches on stderr: additions in short, the rest in full."""
    summary = result.summary
    show = output.progress.print
    for warning in result.warnings:
        show(f"[yellow]warning:[/] {result.stack}: {output.escape(warning)}")
    if summary.empty:
        return
    show(f"[bold]{result.stack}[/]: {summary.line()}")
    if everything or len(summary.adds) <= _NOT_LISTED:
        for change in summary.adds:
            show(f"  [green]+[/] {output.escape(change.address)}")
    else:
        show(f"  [green]+[/] {len(summary.adds)} resources")
    for sign, changes in (
        ("[yellow]~[/]", summary.changes),
        ("[red]±[/]", summary.replaces),
        ("[red]-[/]", summary.destroys),
    ):
        for change in changes:
            why = " (its creation did not finish)" if change.tainted else ""
            show(f"  {sign} {output.escape(change.address)}{why}")
            for field in change.fields:
                show(f"      {output.escape(f'{field.name}: {field.before} → {field.after}')}")


def _show_results(results: Sequence[StackResult]) -> None:
    rows = []
    for r in results:
        status = f"after {', '.join(r.needs)}" if r.needs else r.status
        counts = [len(r.summary.adds), len(r.summary.changes), len(r.summary.replaces), len(r.summary.destroys)]
        rows.append((r.stack, status, *(c or "" for c in counts), output.duration(r.seconds)))
    output.print_table(["stack", "status", "#add", "#change", "#replace", "#destroy", "?#time"], rows)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
