"""`scripts/chaos [NAME …] [--scale N] [--seed TEXT] [--list] [--keep]`: run scenarios one after another."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import time

from . import engines, mutations, races, schedulers, workers  # noqa: F401  (they register their scenarios)
from .fleet import Engines, Fleet, TimeUp
from .registry import SCENARIOS, Scenario
from .verdict import Result, verdict


def run(scenario: Scenario, world: Engines, seed: str, scale: float) -> Result:
    """One scenario from its fleet to its verdict; nothing of it is left running."""
    fleet = Fleet(world, scenario.name, seed, scale, scenario.seconds * max(1.0, scale))
    try:
        try:
            scenario.body(fleet)
            fleet.wait(fleet.over, "all runs end")
        except TimeUp as e:
            fleet.problems.append(str(e))
        fleet.check_services()
        fleet.stop()
        return verdict(fleet, kills=scenario.kills)
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="Break things and judge what comes out.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="scenarios to run (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every scenario's rounds")
    parser.add_argument("--seed", default="", help="what the random choices come from (default: a new one, printed)")
    parser.add_argument("--list", action="store_true", help="print the names and what each does")
    parser.add_argument("--keep", action="store_true", help="leave logs, ledgers and databases where they are")
    args = parser.parse_args()
    if args.list:
        for s in SCENARIOS.values():
            print(f"{s.name:22} {(s.body.__doc__ or '').strip().splitlines()[0]}")
        return 0
    unknown = [n for n in args.names if n not in SCENARIOS]
    if unknown or args.scale <= 0:
        said = f"no scenario {', '.join(unknown)}" if unknown else f"scale must be more than 0, not {args.scale:g}"
        print(f"error: {said}\nhint: the names are {' '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    chosen = [SCENARIOS[n] for n in args.names] or list(SCENARIOS.values())
    seed = args.seed or secrets.token_hex(4)
    return _all(chosen, seed, args.scale, keep=args.keep)


def _all(chosen: list[Scenario], seed: str, scale: float, *, keep: bool) -> int:
    def interrupted(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough: what follows is the tidying up
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    began = time.monotonic()
    print(f"chaos seed={seed} scale={scale:g} load={os.getloadavg()[0]:.1f} cores={os.cpu_count()}", flush=True)
    world = Engines()
    failed: list[str] = []
    results: list[Result] = []
    try:
        world.start()
        for s in chosen:
            start = time.monotonic()
            result = run(s, world, seed, scale)
            passed, said = judged(s, result)
            counts = f"tasks={result.tasks} killed={result.killed} unheard={result.unheard}"
            word = "ok  " if passed else "FAIL"
            print(f"{word} {s.name:22} {time.monotonic() - start:6.1f} s  {counts}  {said}".rstrip(), flush=True)
            if not passed:
                failed.append(s.name)
            if not s.mutation:
                results.append(result)
    except KeyboardInterrupt:
        print("chaos failed: interrupted", flush=True)
        return 130
    finally:
        world.close(keep=keep or bool(failed))
    lost, overlapped = sum(r.lost for r in results), sum(r.overlapped for r in results)
    tasks, seconds = sum(r.tasks for r in results), time.monotonic() - began
    print(f"{seconds:.0f} s, load {os.getloadavg()[0]:.1f}")
    if failed:
        print(f"chaos failed: {' '.join(failed)} (seed={seed}, kept in {world.directory})")
        return 1
    # Killed by what may not kill: such a scenario has failed, so none is left here.
    print(f"chaos ok: scenarios={len(chosen)} tasks={tasks} lost={lost} killed=0 overlapped={overlapped}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
