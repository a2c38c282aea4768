"""Plan, apply and destroy several stacks in the order they stand on each other, independent ones side by side.

Stacks go in levels: a level is planned as a whole, looked at as a whole (refused, confirmed), and then the saved
plans are applied. So nothing starts that could have been refused, and a stack that reads another's outputs is
planned only once that one is applied.
"""

from __future__ import annotations

import concurrent.futures
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from runner.deployctl import cost, environment, ledger, locks, output, planned, recovery, stacks, terraform
from runner.deployctl.job import CancelledError, Ended, Job, StackEvent, StackResult, StacksFailedError
from runner.deployctl.job import prepare as prepare
from runner.deployctl.messages import Message, StalePlanError
from runner.settings import RefusedError, SluiceError, UsageError

_VERBS = {"create": "creating", "update": "changing", "delete": "destroying", "replace": "replacing"}
_STALE_PLANS = 3  # so often may somebody else be quicker before it is given up


def plan(job: Job, *, destroy: bool = False, refresh: bool = True, costs: bool = False) -> list[StackResult]:
    """What an apply would do now. A stack whose ground is not there yet is `waiting`.

    `costs` adds an estimate of what each stack costs a month. Raises StacksFailedError, CancelledError.
    """
    plan_one = functools.partial(_plan_one, job, destroying=destroy, refresh=refresh, details=True, costs=costs)
    standing = job.standing()
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


def drift(job: Job) -> list[StackResult]:
    """What is not any more as the states of the standing stacks say. Changes nothing. Errors as plan()."""

    def look(name: str) -> _Planned:
        began = time.monotonic()
        job.emit(StackEvent(name, "plan", "looking"))
        found = job.workspace(name).drift(job.variables_of(name), _reading(job, name))
        summary = planned.PlanSummary(found)
        seconds = time.monotonic() - began
        return _Planned(job.end(StackResult(name, "drifted" if found else "unchanged", summary, seconds)))

    standing = job.standing()
    return _checked(job, [p.result for p in _side_by_side(job, [n for n in job.names if n in standing], look)])


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
    gaps = stacks.missing(job.names, job.standing(), job.graph)
    for name, needs in gaps.items():
        raise UsageError(
            f"{name} needs {' and '.join(needs)}, which {'is' if len(needs) == 1 else 'are'} not applied yet",
            f"add {' '.join(f'--stack {n}' for n in needs)}, or leave --stack out to apply everything",
        )

    def look(plans: Sequence[_Planned]) -> None:
        doomed = [] if allow_destroy else [a for p in plans for a in p.result.summary.protected()]
        if doomed:
            raise _refusal(doomed, "the plan")
        if confirm and not confirm([p.result for p in plans]):
            raise RefusedError("not confirmed: nothing of this was applied", "")

    return _converge(job, stacks.levels(job.names, job.graph), look, refresh=refresh, details=bool(confirm))


def destroy(
    job: Job, *, confirm: Callable[[Mapping[str, int]], bool] | None = None, allow_destroy: bool = False
) -> list[StackResult]:
    """Take the stacks down, dependents first. `confirm` gets the number of resources of each stack that stands.

    Raises RefusedError if a stack that is not chosen still stands on a chosen one, if a protected resource is among
    what stands and it is not allowed; and as apply() does.
    """
    standing = job.standing()
    for name in job.names:
        above = [d for d in stacks.dependents(name, job.graph) if d in standing and d not in job.names]
        if above:
            raise RefusedError(
                f"{', '.join(above)} still stand{'s' if len(above) == 1 else ''} on {name}",
                f"destroy {'it' if len(above) == 1 else 'them'} first, or name all of them with --stack",
            )
    if stacks.STATE in job.names and stacks.STATE in standing:
        raise RefusedError(
            "the state stack holds the state of every stack, its own too",
            f"`deployctl env delete {job.env.name}` removes it with the environment",
        )
    # What a killed apply made stands too, though no state may know it.
    begun = {n: recovery.begun(job.workspace(n)) for n in job.names}
    there = {n: max(len(standing.get(n, ())), len(begun[n])) for n in job.names if n in standing or begun[n]}
    gone = [job.end(StackResult(n, "unchanged")) for n in job.names if n not in there]
    if not there:
        return gone
    doomed = [r.address for n in there for r in (*standing.get(n, ()), *begun[n]) if r.type in planned.PROTECTED]
    if doomed and not allow_destroy:
        raise _refusal(doomed, "this")
    if confirm and not confirm(there):
        raise RefusedError("not confirmed: nothing was destroyed", "")
    levels = stacks.levels(list(there), job.graph, reverse=True)
    return gone + _converge(job, levels, lambda _plans: None, destroying=True)


def outputs(job: Job) -> dict[str, dict[str, Any]]:
    """The outputs of each stack that stands, by stack."""
    standing = job.standing()
    names = [n for n in job.names if n in standing]
    with concurrent.futures.ThreadPoolExecutor(job.parallel) as pool:
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
        applying = functools.partial(_apply_one, job, {p.result.stack: p for p in changing}, destroying, look, plan_one)
        for p in _side_by_side(job, [p.result.stack for p in changing], applying):
            results[p.result.stack] = p.result
            _write_down(job, p.result, "destroy" if destroying else "apply")
        for p in changing:  # also of those that were not begun
            _drop(p)
    return _checked(job, [results[n] for n in job.names if n in results])


def _write_down(job: Job, result: StackResult, action: str) -> None:
    """Keep in the history how a stack ended. What was done is done: trouble here is told and stops nothing."""
    if result.status == "skipped":
        return
    # The history names what was given by hand; what the running local cloud fills in is not the same tomorrow.
    filled = environment.local_variables(job.env)
    try:
        ledger.write(
            job.env,
            job.environ,
            stack=result.stack,
            action=action,
            status=result.status,
            seconds=result.seconds,
            changes="" if result.summary.empty else result.summary.line(done=True),
            variables={k: v for k, v in job.variables.items() if filled.get(k) != v},
            error=result.error.message if result.error else None,
        )
    except (BotoCoreError, ClientError, SluiceError) as e:
        output.note(f"{result.stack}: the history could not be written: {e}")


def _plan_one(
    job: Job,
    name: str,
    *,
    destroying: bool = False,
    refresh: bool = True,
    details: bool = False,
    costs: bool = False,
) -> _Planned:
    began = time.monotonic()
    show = _reading(job, name)
    job.emit(StackEvent(name, "plan", "planning"))
    space = job.workspace(name)
    if space.init(show):
        job.emit(StackEvent(name, "plan", "planning"))
    if job.wait_seconds:
        for held in locks.held(job.env, [name], job.environ):
            job.emit(StackEvent(name, "locked", held.lock.line()))
    found = _plan_with_orphans(job, space, name, show, destroying, refresh, details)
    # The files of an environment are read by every stack: what one stack does not declare, another does.
    warnings = tuple(w.line() for w in found.warnings if "undeclared variable" not in w.summary.lower())
    estimate = cost.estimate(space.show(found.file)) if costs else None
    seconds = time.monotonic() - began
    if found.summary.empty:
        found.discard()
        return _Planned(job.end(StackResult(name, "unchanged", seconds=seconds, warnings=warnings, cost=estimate)))
    job.emit(StackEvent(name, "planned", found.summary.line(), total=found.summary.steps))
    return _Planned(StackResult(name, "planned", found.summary, seconds, warnings=warnings, cost=estimate), found)


def _plan_with_orphans(
    job: Job,
    space: terraform.Workspace,
    name: str,
    show: terraform.OnMessage,
    destroying: bool,
    refresh: bool,
    details: bool,
) -> terraform.Plan:
    """Plan, and take in what an apply that was killed has made and the state does not know."""
    variables = job.variables_of(name)
    orphans = recovery.orphans(space)
    if orphans:
        clients = functools.partial(environment.client, env=job.env, environ=job.environ)
        job.emit(StackEvent(name, "plan", f"an apply was killed: looking for {len(orphans)} resources that it made"))
        if not destroying:
            return recovery.plan(space, orphans, clients, variables, show, refresh=refresh)
        recovery.adopt(space, orphans, clients, variables, show)  # a plan to destroy takes nothing in
    return space.plan(variables, show, destroy=destroying, refresh=refresh, details=details)


def _reading(job: Job, name: str) -> terraform.OnMessage:
    """Shows how far a plan has come."""
    seen = 0

    def show(message: Message) -> None:
        nonlocal seen
        if message.kind == "init_output":
            job.emit(StackEvent(name, "init", "getting providers and modules ready"))
        elif message.kind == "refresh_complete":
            seen += 1
            job.emit(StackEvent(name, "plan", "reading", message.address, done=seen))

    return show


def _apply_one(
    job: Job,
    plans: Mapping[str, _Planned],
    destroying: bool,
    look: Callable[[Sequence[_Planned]], None],
    plan_one: Callable[[str], _Planned],
    name: str,
) -> _Planned:
    """Apply a saved plan. Of one that somebody else has made stale a new one is made and looked at, if we may wait."""
    ready = plans[name]
    began = time.monotonic()
    for attempt in range(_STALE_PLANS):
        assert ready.plan is not None
        try:
            job.workspace(name).apply(ready.plan, _applying(job, ready))
            break
        except StalePlanError:
            if not job.wait_seconds or attempt == _STALE_PLANS - 1:
                raise
        ready = plan_one(name)
        if ready.plan is None:
            return ready
        look([ready])
    seconds = ready.result.seconds + time.monotonic() - began
    status: Ended = "destroyed" if destroying else "applied"
    return _Planned(job.end(replace(ready.result, status=status, seconds=seconds)))


def _applying(job: Job, ready: _Planned) -> terraform.OnMessage:
    """Shows how far an apply has come, and the resource that everybody waits for."""
    name, total = ready.result.stack, ready.result.summary.steps
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
    return show


def _side_by_side(job: Job, names: Sequence[str], work: Callable[[str], _Planned]) -> list[_Planned]:
    """Do the work for every name, some at once, and wait for all; a failure of one ends up in its own result.

    After a failure none is begun any more, so that what is wrong can be looked at.
    """
    failed = False

    def one(name: str) -> _Planned:
        nonlocal failed
        began = time.monotonic()
        if failed:
            return _Planned(job.end(StackResult(name, "skipped")))
        try:
            return work(name)
        except terraform.CancelledError:
            return _Planned(job.end(StackResult(name, "cancelled", seconds=time.monotonic() - began)))
        except SluiceError as e:
            failed = True
            return _Planned(job.end(StackResult(name, "failed", seconds=time.monotonic() - began, error=e)))

    if not names:
        return []
    with concurrent.futures.ThreadPoolExecutor(job.parallel) as pool:
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


def _refusal(doomed: Sequence[str], what: str) -> RefusedError:
    return RefusedError(
        f"{what} destroys {_some(doomed)}, which cannot be brought back",
        "look at it with `infra plan`; if it is meant, pass --allow-destroy",
    )


def _some(addresses: Sequence[str]) -> str:
    shown = ", ".join(addresses[:3])
    return shown if len(addresses) <= 3 else f"{shown} and {len(addresses) - 3} more"
