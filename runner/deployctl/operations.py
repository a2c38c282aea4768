"""Plan, apply and destroy several stacks in the order they stand on each other, independent ones side by side.

Stacks go in levels: a level is planned as a whole, looked at as a whole (refused, confirmed), and then the saved
plans are applied. So nothing starts that could have been refused, and a stack that reads another's outputs is
planned only once that one is applied.
"""

from __future__ import annotations

import concurrent.futures
import functools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from runner.deployctl import binary, environment, planned, stacks, terraform
from runner.deployctl.environment import Environment
from runner.deployctl.messages import Message
from runner.settings import RefusedError, SluiceError, UsageError

Phase = Literal[
    "init", "plan", "planned", "apply", "applied", "destroyed", "unchanged", "failed", "skipped", "waiting", "cancelled"
]
ENDED: frozenset[Phase] = frozenset({"applied", "destroyed", "unchanged", "failed", "skipped", "waiting", "cancelled"})
_VERBS = {"create": "creating", "update": "changing", "delete": "destroying", "replace": "replacing"}


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
        )

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
        done = result.status in ("applied", "destroyed")
        text = result.error.message if result.error else result.summary.line(done=done)
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
) -> Job:
    """Check all that can be checked before terraform starts: environment, stacks, variables, account, bucket, tool.

    Raises UsageError, RefusedError (credentials of another account) and SluiceError.
    """
    found = environment.load(env) if isinstance(env, str) else env
    given = {**environment.local_variables(found), **(variables or {})}
    files = {p for name in stacks.graph() for p in found.var_files(name)}
    engines = given.get("engines") not in (None, "null") or (
        "engines" not in given and environment.sets_variable(files, "engines")
    )
    graph = stacks.graph(engines=engines)
    chosen = stacks.select(names, graph)
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
    return Job(found, chosen, graph, given, child, tool, cancel or terraform.Cancel(), on_event)


def plan(job: Job, *, destroy: bool = False, refresh: bool = True) -> list[StackResult]:
    """What an apply would do now. A stack whose ground is not there yet is `waiting`.

    Raises StacksFailedError, CancelledError.
    """
    plan_one = functools.partial(_plan_one, job, destroying=destroy, refresh=refresh, details=True)
    standing = _standing(job)
    results = []
    ready = []
    for name in job.names:
        needs = tuple(d for d in job.graph if d in job.graph[name] and d not in standing)
        if needs:
            results.append(job.end(StackResult(name, "waiting", needs=needs)))
        else:
            ready.append(name)
    results += [_drop(r) for r in _side_by_side(job, ready, plan_one)]
    return _checked(job, results)


def apply(
    job: Job,
    *,
    confirm: Callable[[Sequence[StackResult]], bool] | None = None,
    allow_destroy: bool = False,
    refresh: bool = True,
) -> list[StackResult]:
    """Make the stacks what their code says. `confirm` is asked once a level, with the plans that change something.

    Raises RefusedError before anything of a level is applied if a plan would destroy a protected resource;
    StacksFailedError once the stacks already running have ended; CancelledError.
    """
    gaps = stacks.missing(job.names, _standing(job), job.graph)
    for name, needs in gaps.items():
        raise UsageError(
            f"{name} needs {' and '.join(needs)}, which {'is' if len(needs) == 1 else 'are'} not applied yet",
            f"add {' '.join(f'--stack {n}' for n in needs)}, or leave --stack out to apply everything",
        )

    def look(plans: Sequence[_Planned]) -> None:
        doomed = [] if allow_destroy else [a for p in plans for a in p.result.summary.protected()]
        if doomed:
            raise RefusedError(
                f"the plan destroys {_some(doomed)}, which cannot be brought back",
                "look at it with `infra plan`; if it is meant, pass --allow-destroy",
            )
        if confirm and not confirm([p.result for p in plans]):
            raise RefusedError("not confirmed: nothing of this was applied", "")

    return _converge(job, stacks.levels(job.names, job.graph), look, refresh=refresh, details=bool(confirm))


def destroy(job: Job, *, confirm: Callable[[Mapping[str, int]], bool] | None = None) -> list[StackResult]:
    """Take the stacks down, dependents first. `confirm` gets the number of resources of each stack that stands.

    Raises RefusedError if a stack that is not chosen still stands on a chosen one, and as apply() does.
    """
    standing = _standing(job)
    for name in job.names:
        above = [d for d in stacks.dependents(name, job.graph) if d in standing and d not in job.names]
        if above:
            raise RefusedError(
                f"{', '.join(above)} still stand{'s' if len(above) == 1 else ''} on {name}",
                f"destroy {'it' if len(above) == 1 else 'them'} first, or name all of them with --stack",
            )
    there = {n: standing[n] for n in job.names if n in standing}
    gone = [job.end(StackResult(n, "unchanged")) for n in job.names if n not in there]
    if not there:
        return gone
    if confirm and not confirm(there):
        raise RefusedError("not confirmed: nothing was destroyed", "")
    levels = stacks.levels(list(there), job.graph, reverse=True)
    return gone + _converge(job, levels, lambda _plans: None, destroying=True)


def outputs(job: Job) -> dict[str, dict[str, Any]]:
    """The outputs of each stack that stands, by stack."""
    standing = _standing(job)
    names = [n for n in job.names if n in standing]
    with concurrent.futures.ThreadPoolExecutor(max(1, len(names))) as pool:
        return dict(zip(names, pool.map(lambda n: job.workspace(n).outputs(), names), strict=True))


@dataclass(frozen=True)
class _Planned:
    result: StackResult
    plan: terraform.Plan | None = None


def _converge(
    job: Job,
    levels: Sequence[Sequence[str]],
    look: Callable[[Sequence[_Planned]], None],
    *,
    refresh: bool = True,
    details: bool = False,
    destroying: bool = False,
) -> list[StackResult]:
    plan_one = functools.partial(_plan_one, job, destroying=destroying, refresh=refresh, details=details)
    results: dict[str, StackResult] = {}
    for level in levels:
        broken = {n for n, r in results.items() if r.status not in ("applied", "destroyed", "unchanged")}
        blocked = {n: _blockers(n, broken, job.graph, destroying) for n in level}
        for name in level:
            if blocked[name]:
                results[name] = job.end(StackResult(name, "skipped", needs=tuple(blocked[name])))
        ready = [n for n in level if not blocked[n]]
        plans = _side_by_side(job, ready, plan_one)
        results |= {p.result.stack: p.result for p in plans}
        if job.cancel.wanted or any(p.result.error for p in plans):
            # Nothing of this level has started: better to fix the first mistake than to apply around it.
            for p in plans:
                results[p.result.stack] = _drop(p)
            continue
        changing = [p for p in plans if p.plan]
        try:
            if changing:
                look(changing)
        except BaseException:
            for p in changing:
                _drop(p)
            raise
        by_name = {p.result.stack: p for p in changing}
        for p in _side_by_side(job, list(by_name), lambda n: _apply_one(job, by_name[n], destroying)):  # noqa: B023
            results[p.result.stack] = p.result
    return _checked(job, [results[n] for n in job.names if n in results])


def _plan_one(
    job: Job, name: str, *, destroying: bool = False, refresh: bool = True, details: bool = False
) -> _Planned:
    began = time.monotonic()
    seen = 0

    def show(message: Message) -> None:
        nonlocal seen
        if message.kind == "init_output":
            job.emit(StackEvent(name, "init", "getting providers and modules ready"))
        elif message.kind == "refresh_complete":
            seen += 1
            job.emit(StackEvent(name, "plan", "reading", message.address, done=seen))

    job.emit(StackEvent(name, "plan", "planning"))
    space = job.workspace(name)
    if space.init(show):
        job.emit(StackEvent(name, "plan", "planning"))
    found = space.plan(job.variables_of(name), show, destroy=destroying, refresh=refresh, details=details)
    # The files of an environment are read by every stack: what one stack does not declare, another does.
    warnings = tuple(w.line() for w in found.warnings if "undeclared variable" not in w.summary.lower())
    seconds = time.monotonic() - began
    if found.summary.empty:
        found.discard()
        return _Planned(job.end(StackResult(name, "unchanged", seconds=seconds, warnings=warnings)))
    job.emit(StackEvent(name, "planned", found.summary.line(), total=found.summary.steps))
    return _Planned(StackResult(name, "planned", found.summary, seconds, warnings=warnings), found)


def _apply_one(job: Job, ready: _Planned, destroying: bool) -> _Planned:
    assert ready.plan is not None
    name = ready.result.stack
    began = time.monotonic()
    total = ready.result.summary.steps
    done = 0
    working: dict[str, str] = {}  # addresses in hand, oldest first: the oldest is what everybody waits for

    def show(message: Message) -> None:
        nonlocal done
        if message.kind == "apply_start":
            working[message.address] = _VERBS.get(message.action, message.action)
        elif message.kind in ("apply_complete", "apply_errored"):
            working.pop(message.address, None)
            done += message.kind == "apply_complete"
        elif message.kind != "apply_progress":
            return
        address, verb = next(iter(working.items()), ("", ""))
        job.emit(StackEvent(name, "apply", verb, address, done, total))

    job.emit(StackEvent(name, "apply", "starting", total=total))
    job.workspace(name).apply(ready.plan, show)
    seconds = ready.result.seconds + time.monotonic() - began
    status: Phase = "destroyed" if destroying else "applied"
    return _Planned(job.end(replace(ready.result, status=status, seconds=seconds)))


def _side_by_side(job: Job, names: Sequence[str], work: Callable[[str], _Planned]) -> list[_Planned]:
    """Do the work for every name at once and wait for all; a failure of one ends up in its own result."""

    def one(name: str) -> _Planned:
        began = time.monotonic()
        try:
            return work(name)
        except terraform.CancelledError:
            return _Planned(job.end(StackResult(name, "cancelled", seconds=time.monotonic() - began)))
        except SluiceError as e:
            return _Planned(job.end(StackResult(name, "failed", seconds=time.monotonic() - began, error=e)))

    if not names:
        return []
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(one, names))


def _checked(job: Job, results: list[StackResult]) -> list[StackResult]:
    results.sort(key=lambda r: job.names.index(r.stack))
    if job.cancel.wanted:
        raise CancelledError(results)
    if any(r.error for r in results):
        raise StacksFailedError(results)
    return results


def _drop(found: _Planned) -> StackResult:
    if found.plan:
        found.plan.discard()
    return found.result


def _blockers(name: str, broken: set[str], graph: stacks.Graph, destroying: bool) -> list[str]:
    around = stacks.dependents(name, graph) if destroying else [n for n in graph if name in stacks.dependents(n, graph)]
    return [n for n in around if n in broken]


def _standing(job: Job) -> dict[str, int]:
    found = environment.standing(job.env, list(job.graph), job.environ)
    return {n: count for n, count in found.items() if count}


def _some(addresses: Sequence[str]) -> str:
    shown = ", ".join(addresses[:3])
    return shown if len(addresses) <= 3 else f"{shown} and {len(addresses) - 3} more"
