"""`deployctl infra`: Terraform's stacks of an environment, in dependency order, and the same for other Python code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from runner.deployctl import environment, infra_view, locks, operations, output
from runner.deployctl.environment import Environment
from runner.deployctl.job import PARALLEL, CancelledError, Job, OnEvent, StackResult, StacksFailedError
from runner.deployctl.progress import Display
from runner.deployctl.run import Cancel
from runner.deployctl.stacks import STATE
from runner.deployctl.stacks import select as order
from runner.settings import RefusedError, UsageError

DRIFTED = 4  # exit code of `infra drift`

app = typer.Typer(no_args_is_help=True)

EnvOption = Annotated[str, typer.Option("--env", help="Environment: a folder of terraform/envs.")]
StackOption = Annotated[list[str] | None, typer.Option("--stack", help="Only this stack; may be repeated.")]
VarOption = Annotated[
    list[str] | None,
    typer.Option("--var", metavar="NAME=VALUE", help="A Terraform variable, for the stacks that have it."),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
WaitOption = Annotated[
    str, typer.Option("--wait", metavar="TIME", help="How long to wait for a state lock that is held, such as 10m.")
]
ParallelOption = Annotated[int, typer.Option("--parallel", min=1, help="Stacks to work on at once, 0.5 GB each.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


# The same for other code: no terminal, no questions, safe to call from any thread.


def apply(
    env: str | Environment,
    stacks: Iterable[str] = (),
    *,
    variables: Mapping[str, Any] | None = None,
    yes: bool = True,
    allow_destroy: bool = False,
    refresh: bool = True,
    on_event: OnEvent | None = None,
    cancel: Cancel | None = None,
    environ: Mapping[str, str] | None = None,
    parallel: int = PARALLEL,
    wait_seconds: float = 0.0,
) -> list[StackResult]:
    """Apply stacks (all of them by default) in dependency order and return how each ended.

    A variable that is text is read as on terraform's command line, any other by its type. `environ` is the
    environment of terraform and the AWS clients (default: this process's, with the running local cloud's for
    env `local`). `refresh=False` trusts the state and saves the reading of every resource. `cancel.cancel()`
    from another thread stops it cleanly. `parallel` stacks are worked on at once. `wait_seconds` is how long to wait
    for a state lock that somebody else holds; 0 fails at once.

    Raises UsageError, RefusedError, StacksFailedError (has `.results`), CancelledError (has `.results`).
    """
    job = operations.prepare(
        env,
        stacks,
        variables=variables,
        on_event=on_event,
        cancel=cancel,
        environ=environ,
        parallel=parallel,
        wait_seconds=wait_seconds,
    )
    confirm = None if yes else infra_view.confirm_plans
    return operations.apply(job, confirm=confirm, allow_destroy=allow_destroy, refresh=refresh)


def plan(
    env: str | Environment,
    stacks: Iterable[str] = (),
    *,
    variables: Mapping[str, Any] | None = None,
    refresh: bool = True,
    on_event: OnEvent | None = None,
    cancel: Cancel | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[StackResult]:
    """What apply() would do now; changes nothing. Arguments and errors as there."""
    job = operations.prepare(env, stacks, variables=variables, on_event=on_event, cancel=cancel, environ=environ)
    return operations.plan(job, refresh=refresh)


def destroy(
    env: str | Environment,
    stacks: Iterable[str] = (),
    *,
    variables: Mapping[str, Any] | None = None,
    allow_destroy: bool = False,
    on_event: OnEvent | None = None,
    cancel: Cancel | None = None,
    environ: Mapping[str, str] | None = None,
    parallel: int = PARALLEL,
) -> list[StackResult]:
    """Destroy stacks, dependents first, without asking; none named means all that stand but the state's own.

    Arguments and errors as in apply().
    """
    job = operations.prepare(
        env, stacks, variables=variables, on_event=on_event, cancel=cancel, environ=environ, parallel=parallel
    )
    return operations.destroy(_all_that_stands(job, stacks), allow_destroy=allow_destroy)


def drift(
    env: str | Environment,
    stacks: Iterable[str] = (),
    *,
    on_event: OnEvent | None = None,
    cancel: Cancel | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[StackResult]:
    """What is not any more as the states say, by stack: `drifted` or `unchanged`. Errors as in apply()."""
    return operations.drift(operations.prepare(env, stacks, on_event=on_event, cancel=cancel, environ=environ))


def outputs(
    env: str | Environment, stacks: Iterable[str] = (), *, environ: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """The outputs of the applied stacks, by stack. Errors as in apply()."""
    job = operations.prepare(env, stacks, environ=environ)
    return operations.outputs(_all_that_stands(job, stacks, state=True))


def _all_that_stands(job: Job, named: Iterable[str], *, state: bool = False) -> Job:
    """With no stack named, all those that stand: also one that the environment's files do not speak of any more."""
    if not list(named):
        standing = job.standing()
        kept = [n for n in job.graph if (n in standing or n in job.names) and (state or n != STATE)]
        job.names = order(kept, job.graph)
    return job


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
    cost: Annotated[bool, typer.Option("--cost", help="Estimate what the stacks cost a month.")] = False,
    wait: WaitOption = "0",
    parallel: ParallelOption = PARALLEL,
    as_json: JsonOption = False,
) -> None:
    """Show what an apply would change."""

    def work(job: Job, _display: Display) -> list[StackResult]:
        return operations.plan(job, costs=cost)

    results = _run(env, stack, var, work, as_json, wait=wait, parallel=parallel)
    if not as_json:
        for result in results:
            infra_view.show_changes(result, everything=True)
        infra_view.show_cost(results)


@app.command("apply")
def apply_command(
    env: EnvOption,
    stack: StackOption = None,
    var: VarOption = None,
    yes: YesOption = False,
    allow_destroy: Annotated[
        bool, typer.Option("--allow-destroy", help="Let the plan destroy databases, buckets, networks and groups.")
    ] = False,
    wait: WaitOption = "0",
    parallel: ParallelOption = PARALLEL,
    as_json: JsonOption = False,
) -> None:
    """Make the stacks what their code says: plan, confirm, apply the saved plan."""

    def work(job: Job, display: Display) -> list[StackResult]:
        def ask(plans: Sequence[StackResult]) -> bool:
            with display.paused(), job.cancel.asking():
                return infra_view.confirm_plans(plans)

        return operations.apply(job, confirm=None if yes else ask, allow_destroy=allow_destroy)

    _run(env, stack, var, work, as_json, wait=wait, parallel=parallel)


@app.command("destroy")
def destroy_command(
    env: EnvOption,
    stack: StackOption = None,
    var: VarOption = None,
    yes: YesOption = False,
    allow_destroy: Annotated[
        bool, typer.Option("--allow-destroy", help="Also databases, buckets, keys and networks.")
    ] = False,
    wait: WaitOption = "0",
    parallel: ParallelOption = PARALLEL,
    as_json: JsonOption = False,
) -> None:
    """Take the stacks down, dependents first. Asks for the environment's name."""

    def work(job: Job, display: Display) -> list[StackResult]:
        def ask(standing: Mapping[str, int]) -> bool:
            what = ", ".join(f"{name} ({count} resources)" for name, count in standing.items())
            with display.paused(), job.cancel.asking():
                output.note(f"This destroys, in {env} (account {job.env.account_id}): {what}.")
                return output.confirm("There is no way back.", answer=env)

        return operations.destroy(job, confirm=None if yes else ask, allow_destroy=allow_destroy)

    _run(env, stack, var, work, as_json, wait=wait, parallel=parallel, all_that_stands=True)


@app.command("output")
def output_command(env: EnvOption, stack: StackOption = None, as_json: JsonOption = False) -> None:
    """Print the outputs of the applied stacks."""
    found = outputs(env, stack or ())
    if as_json:
        output.print_json(found)
        return
    rows = [(name, key, infra_view.text(value)) for name, values in found.items() for key, value in values.items()]
    if rows:
        output.print_table(["stack", "output", "value"], rows)
    else:
        output.note(f"nothing is applied in {env}")


@app.command("drift")
def drift_command(env: EnvOption, stack: StackOption = None, as_json: JsonOption = False) -> None:
    """Find what is not any more as Terraform left it. Exit code 0: nothing, 4: drift found, 1: could not be told."""

    def work(job: Job, _display: Display) -> list[StackResult]:
        return operations.drift(job)

    results = _run(env, stack, None, work, as_json, quiet=True)
    if not as_json:
        infra_view.show_drift(results)
    if any(r.status == "drifted" for r in results):
        raise typer.Exit(DRIFTED)


@app.command("locks")
def locks_command(env: EnvOption, stack: StackOption = None, as_json: JsonOption = False) -> None:
    """Show whose state locks are held, and since when."""
    found = _locks(operations.prepare(env, stack or ()))
    if as_json:
        output.print_json([h.as_json() for h in found])
    elif found:
        infra_view.show_locks(found)
    else:
        output.note(f"no state of {env} is locked")


@app.command("unlock")
def unlock_command(
    env: EnvOption,
    stack: Annotated[str, typer.Option("--stack", help="The stack whose state is locked.")],
    lock_id: Annotated[
        str, typer.Option("--id", help="The lock's id, as it was shown; without it you are asked.")
    ] = "",
) -> None:
    """Take away a state lock whose holder is dead. Refused while the holder is alive on this machine."""
    job = operations.prepare(env, [stack])
    found = _locks(job)
    if not found:
        output.note(f"{stack}: not locked")
        return
    held = found[0]
    infra_view.show_locks(found, on_stderr=True)
    if held.pid:
        raise RefusedError(
            f"{stack}: the run that holds the lock is alive: process {held.pid} on this machine",
            f"wait for it, or stop it with one `kill -INT {held.pid}`: it then gives the lock back by itself",
        )
    if lock_id and lock_id != held.lock.id:
        raise RefusedError(
            f"{stack}: the lock is another one by now: {held.lock.id}, held by {held.lock.line()}",
            "look at it with `infra locks`",
        )
    if not lock_id and not output.confirm(f"Is that run dead ({held.holder})?"):
        raise RefusedError("not confirmed: the lock stays", "")
    job.workspace(stack).unlock(held.lock.id)
    output.note(f"{stack}: unlocked; the next apply takes in what the dead run had made")


def _locks(job: Job) -> list[locks.Held]:
    return locks.held(job.env, job.names, job.environ)


def _run(
    env: str | Environment,
    stack: list[str] | None,
    var: list[str] | None,
    work: Callable[[Job, Display], list[StackResult]],
    as_json: bool,
    *,
    wait: str = "0",
    parallel: int = PARALLEL,
    all_that_stands: bool = False,
    quiet: bool = False,
) -> list[StackResult]:
    """Prepare, show progress, let Ctrl-C cancel cleanly, print the outcome."""
    cancel = Cancel()
    job = operations.prepare(
        env,
        stack or (),
        variables=parse_variables(var or ()),
        cancel=cancel,
        parallel=parallel,
        wait_seconds=parse_seconds(wait),
    )
    if all_that_stands:
        job = _all_that_stands(job, stack or ())
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
        elif results and not quiet:
            infra_view.show_results(results)
    return results


def parse_seconds(text: str) -> float:
    """Read `90`, `90s`, `10m` or `1h`. Raises UsageError for anything else."""
    match = re.fullmatch(r"(\d+)([smh]?)", text.strip())
    if not match:
        raise UsageError(f"--wait {text!r} is no time", "for example 90s, 10m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def parse_variables(words: Iterable[str]) -> dict[str, str]:
    """Read `NAME=VALUE` words. Raises UsageError for one that is not."""
    out = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--var {word!r} is not NAME=VALUE", "for example --var 'workers={default=3}'")
        out[name] = value
    return out
