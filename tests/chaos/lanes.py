"""Scenarios side by side: each lane is a process with engines of its own, and takes one scenario after another."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .fleet import Fleet, Inconclusive, TimeUp
from .registry import SCENARIOS, Scenario
from .verdict import Result, verdict
from .world import Engines

TRIES = 3


@dataclass(frozen=True)
class Report:
    """What came of one scenario: how long it took, whether it passed, and what to say of it."""

    name: str
    seconds: float
    passed: bool
    said: str
    result: Result | None


def run(scenario: Scenario, world: Engines, seed: str, scale: float) -> Result:
    """One scenario from its fleet to its verdict; nothing of it is left running.

    Raises Inconclusive if nothing is wrong because nothing was done.
    """
    seconds = scenario.seconds * max(1.0, scale)
    fleet = Fleet(world, scenario.name, seed, scale, seconds, lease=scenario.lease)
    inconclusive: Inconclusive | None = None
    try:
        try:
            scenario.body(fleet)
            fleet.wait(fleet.over, "all runs end")
        except TimeUp as e:
            fleet.problems.append(str(e))
        except Inconclusive as e:
            inconclusive = e
        fleet.check_services()
        fleet.stop()
        result = verdict(fleet, kills=scenario.kills)
        if inconclusive and result.ok:
            raise inconclusive
        return result
    finally:
        fleet.close()


def judged(scenario: Scenario, result: Result) -> tuple[bool, str]:
    """Whether the scenario passed, and what to say of it. A mutation passes when what it breaks was found."""
    if not scenario.mutation:
        return result.ok, "; ".join(result.problems[:5])
    missing = [want for want in scenario.mutation if not any(want in p for p in result.problems)]
    if missing:
        return False, f"the fault was not detected: nothing about {', '.join(map(repr, missing))} in {result.problems}"
    found = [next(p for p in result.problems if want in p) for want in scenario.mutation]
    return True, "detected: " + "; ".join(p[:100] for p in found)


def run_all(chosen: list[Scenario], directory: Path, seed: str, scale: float, lanes: int) -> Iterator[Report]:
    """Run them, the long ones first; a report each, as they end. Nothing is left running, also if interrupted."""
    waiting = sorted(chosen, key=lambda s: -s.takes)
    engines = [Engines(directory / f"lane-{i + 1}") for i in range(min(lanes, len(chosen)))]
    context = multiprocessing.get_context("fork")
    ends: dict[multiprocessing.connection.Connection, multiprocessing.process.BaseProcess] = {}
    at_work: dict[multiprocessing.connection.Connection, str] = {}
    try:
        for world in engines:
            ours, theirs = context.Pipe()
            lane = context.Process(target=_lane, args=(theirs, world, seed, scale))
            lane.start()
            theirs.close()
            ends[ours] = lane
        while ends:
            for ours in multiprocessing.connection.wait(list(ends)):
                assert isinstance(ours, multiprocessing.connection.Connection)
                try:
                    report = ours.recv()
                except EOFError:
                    ends.pop(ours).join()
                    report = Report(at_work.pop(ours), 0.0, False, "its lane died", None) if ours in at_work else None
                else:
                    at_work.pop(ours, None)
                    if waiting:
                        at_work[ours] = waiting[0].name
                        ours.send(waiting.pop(0).name)
                    else:
                        ours.send(None)
                if report is not None:
                    yield report
        for s in waiting:
            yield Report(s.name, 0.0, False, "no lane was left to run it", None)
    finally:
        for lane in ends.values():
            lane.terminate()
        for lane in ends.values():
            lane.join()
        for world in engines:
            world.close()


def _lane(orders: multiprocessing.connection.Connection, world: Engines, seed: str, scale: float) -> None:
    signal.signal(signal.SIGINT, lambda *_: None)  # the first process hears it, and ends the lanes
    signal.signal(signal.SIGTERM, _interrupted)
    world.start()
    orders.send(None)
    while (name := orders.recv()) is not None:
        scenario = SCENARIOS[name]
        began = time.monotonic()
        try:
            result, passed, said = _tried(scenario, world, seed, scale)
        except Exception:
            result, passed, said = None, False, traceback.format_exc()
        orders.send(Report(name, time.monotonic() - began, passed, said, result))


def _tried(scenario: Scenario, world: Engines, seed: str, scale: float) -> tuple[Result | None, bool, str]:
    """A verdict. Chance may spare a fleet the harm, or a mutation its consequence: then once more, with other luck."""
    said = ""
    for attempt in range(TRIES):
        try:
            result = run(scenario, world, f"{seed}+{attempt}" if attempt else seed, scale)
        except Inconclusive as e:
            said = f"proved nothing in {attempt + 1} tries: {e}"
            continue
        passed, said = judged(scenario, result)
        if passed or not scenario.mutation:
            return result, passed, said
    return None, False, said


def _interrupted(*_: object) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # once is enough: what follows is the tidying up
    raise SystemExit(143)
