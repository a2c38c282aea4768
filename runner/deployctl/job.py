"""One command on one environment: the stacks it works on, how it reports, and what is checked before it starts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from runner.deployctl import binary, environment, planned, stacks, terraform
from runner.deployctl.cost import Estimate
from runner.deployctl.environment import Environment
from runner.deployctl.statefile import Resource
from runner.settings import SluiceError, UsageError

Ended = Literal["applied", "destroyed", "unchanged", "drifted", "failed", "skipped", "waiting", "cancelled"]
Phase = Literal["locked", "init", "plan", "planned", "apply"] | Ended
ENDED: frozenset[Phase] = frozenset(get_args(Ended))

# Stacks worked on side by side. Each is a terraform with a provider process of half a GB, and AWS's rate limits
# are per account: more of them is rarely quicker.
PARALLEL = 2


@dataclass(frozen=True)
class StackEvent:
    """One step of one stack, for whoever shows the progress."""

    stack: str
    phase: Phase
    text: str = ""
    resource: str = ""  # the one being worked on
    done: int = 0  # resource operations so far, of `total`
    total: int = 0
    seconds: float = 0.0  # since this stack's work began


OnEvent = Callable[[StackEvent], None]


@dataclass(frozen=True)
class StackResult:
    """How one stack ended."""

    stack: str
    status: Phase
    summary: planned.PlanSummary = field(default_factory=planned.PlanSummary)
    seconds: float = 0.0
    error: SluiceError | None = None
    needs: tuple[str, ...] = ()  # for `waiting` and `skipped`: the stacks it stands on that are not there
    warnings: tuple[str, ...] = ()
    cost: Estimate | None = None  # where it was asked for

    def as_json(self) -> dict[str, Any]:
        """The result for `--json`."""
        return {
            "stack": self.stack,
            "status": self.status,
            **self.summary.as_json(),
            "seconds": round(self.seconds, 1),
            "error": self.error.message if self.error else None,
            "needs": list(self.needs),
            "warnings": list(self.warnings),
            **({"cost": self.cost.as_json()} if self.cost else {}),
        }


class StacksFailedError(SluiceError):
    """At least one stack failed; `results` has all of them."""

    def __init__(self, results: Sequence[StackResult]) -> None:
        failed = [r for r in results if r.error]
        first = failed[0]
        assert first.error is not None
        also = f" (also failed: {', '.join(r.stack for r in failed[1:])})" if failed[1:] else ""
        super().__init__(f"{first.stack}: {first.error.message}{also}", first.error.hint)
        self.results = list(results)
        self.exit_code = first.error.exit_code


class CancelledError(Exception):
    """Stopped because somebody wanted it; every lock is given back. `results` has how far each stack came."""

    def __init__(self, results: Sequence[StackResult]) -> None:
        super().__init__("cancelled")
        self.results = list(results)


@dataclass
class Job:
    """One command on one environment: what it works on and how it reports."""

    env: Environment
    names: list[str]  # in building order
    graph: stacks.Graph
    variables: Mapping[str, Any]
    environ: Mapping[str, str]
    binary: Path
    cancel: terraform.Cancel
    on_event: OnEvent | None = None
    parallel: int = PARALLEL
    wait_seconds: float = 0.0  # how long to wait for a state lock
    _emitting: threading.Lock = field(default_factory=threading.Lock)
    _began: dict[str, float] = field(default_factory=dict)

    def workspace(self, stack: str) -> terraform.Workspace:
        """Terraform for one stack."""
        return terraform.Workspace(
            binary=self.binary,
            source=self.env.source(stack),
            data=self.env.data(stack, self.environ),
            backend=self.env.backend(stack),
            var_files=self.env.var_files(stack),
            environ=self.environ,
            cancel=self.cancel,
            wait_seconds=self.wait_seconds,
        )

    def standing(self) -> dict[str, list[Resource]]:
        """The stacks that stand, of all there can be, with the resources of each."""
        found = environment.states(self.env, self.graph, self.environ)
        return {n: resources for n, resources in found.items() if resources}

    def variables_of(self, stack: str) -> dict[str, Any]:
        """The given variables that this stack declares, and the state bucket where no file names it."""
        declared = environment.declared_variables(self.env.source(stack))
        found = {k: v for k, v in self.variables.items() if k in declared}
        if "state_bucket" in declared and not environment.sets_variable(self.env.var_files(stack), "state_bucket"):
            found.setdefault("state_bucket", self.env.state_bucket)
        return found

    def emit(self, event: StackEvent) -> None:
        """Report a step; one at a time, whatever thread it comes from."""
        if self.on_event is None:
            return
        with self._emitting:
            began = self._began.setdefault(event.stack, time.monotonic())
            self.on_event(replace(event, seconds=time.monotonic() - began))

    def end(self, result: StackResult) -> StackResult:
        """Report how a stack ended."""
        if result.status == "drifted":
            text = ", ".join(c.address for c in result.summary.items)
        else:
            text = result.summary.line(done=result.status in ("applied", "destroyed"))
        text = result.error.message if result.error else text
        self.emit(StackEvent(result.stack, result.status, text))
        return result


def prepare(
    env: str | Environment,
    names: Iterable[str] = (),
    *,
    variables: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
    cancel: terraform.Cancel | None = None,
    environ: Mapping[str, str] | None = None,
    parallel: int = PARALLEL,
    wait_seconds: float = 0.0,
) -> Job:
    """Check all that can be checked before terraform starts: environment, stacks, variables, account, bucket, tool.

    No names means all stacks of the environment.

    Raises UsageError, RefusedError (credentials of another account) and SluiceError.
    """
    found = environment.load(env) if isinstance(env, str) else env
    given = {**environment.local_variables(found), **(variables or {})}
    files = {p for name in stacks.graph() for p in found.var_files(name)}
    engines = given.get("engines") not in (None, "null") or (
        "engines" not in given and environment.sets_variable(files, "engines")
    )
    graph = stacks.graph(engines=engines)
    chosen = stacks.select(names, graph, found.stacks())
    declared = {v for name in chosen for v in environment.declared_variables(found.source(name))}
    for name in variables or {}:
        if name not in declared:
            raise UsageError(
                f"none of the stacks {', '.join(chosen)} has a variable {name!r}",
                f"they have {', '.join(sorted(declared))}" if declared else "",
            )
    child = environment.process_environ(found, environ)
    tool = binary.find(child)
    environment.check_account(found, child)
    environment.check_state_bucket(found, child)
    return Job(
        env=found,
        names=chosen,
        graph=graph,
        variables=given,
        environ=child,
        binary=tool,
        cancel=cancel or terraform.Cancel(),
        on_event=on_event,
        parallel=max(1, parallel),
        wait_seconds=wait_seconds,
    )
