"""`scripts/chaos [NAME …]`: run scenarios; `scripts/chaos --long N`: one long run with random kills."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from . import (  # noqa: F401  (they register their scenarios)
    broker,
    clocks,
    database,
    drains,
    logs,
    mutations,
    partitions,
    races,
    releases,
    rolls,
    schedulers,
    workers,
)
from .lanes import Report, run_all
from .longrun import long_run
from .registry import SCENARIOS, Scenario


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="Break things and judge what comes out.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="scenarios to run (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every scenario's rounds")
    parser.add_argument("--seed", default="", help="what the random choices come from (default: a new one, printed)")
    parser.add_argument("--lanes", type=int, default=3, help="scenarios at a time, each lane on engines of its own")
    parser.add_argument("--long", type=int, metavar="N", help="instead: N task executions under random kills")
    parser.add_argument(
        "--every", type=float, default=1000, help="of a long run: tasks between two faults (%(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="print the names, their numbers in the fault list, and why")
    parser.add_argument("--keep", action="store_true", help="leave logs, ledgers and databases where they are")
    args = parser.parse_args()
    if args.list:
        for s in SCENARIOS.values():
            items = ",".join(map(str, s.items))
            print(f"{s.name:24} {items:7} {(s.body.__doc__ or '').strip().splitlines()[0]}")
        return 0
    unknown = [n for n in args.names if n not in SCENARIOS]
    said = ""
    if unknown:
        said = f"no scenario {', '.join(unknown)}"
    elif min(args.scale, args.lanes, args.every, 1 if args.long is None else args.long) <= 0:
        said = "every number must be more than 0"
    if said:
        print(f"error: {said}\nhint: the names are {' '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, _interrupted)
    signal.signal(signal.SIGTERM, _interrupted)
    seed = args.seed or secrets.token_hex(4)
    directory = Path(tempfile.mkdtemp(prefix="sluice-chaos-"))
    print(f"chaos seed={seed} scale={args.scale:g} load={os.getloadavg()[0]:.1f} cores={os.cpu_count()}", flush=True)
    keep = True
    try:
        if args.long is not None:
            passed = long_run(directory, args.long, seed, args.every)
        else:
            chosen = [SCENARIOS[n] for n in dict.fromkeys(args.names)]
            chosen = chosen or [s for s in SCENARIOS.values() if s.default]
            passed = _scenarios(chosen, directory, seed, args.scale, args.lanes)
        keep = args.keep or not passed
    except KeyboardInterrupt:
        print("chaos failed: interrupted", flush=True)
        keep = args.keep
        return 130
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
    return 0 if passed else 1


def _scenarios(chosen: list[Scenario], directory: Path, seed: str, scale: float, lanes: int) -> bool:
    began = time.monotonic()
    reports: list[Report] = []
    for report in run_all(chosen, directory, seed, scale, lanes):
        reports.append(report)
        r = report.result
        counts = f"tasks={r.tasks} killed={r.killed} unheard={r.unheard}" if r else "no verdict"
        word = "ok  " if report.passed else "FAIL"
        print(f"{word} {report.name:24} {report.seconds:6.1f} s  {counts}  {report.said}".rstrip(), flush=True)
    results = [r.result for r in reports if r.result and not SCENARIOS[r.name].mutation]
    print(f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}")
    failed = sorted(r.name for r in reports if not r.passed)
    if failed:
        print(f"chaos failed: {' '.join(failed)} (seed={seed}, kept in {directory})")
        return False
    tasks, lost, overlapped = (sum(getattr(r, n) for r in results) for n in ("tasks", "lost", "overlapped"))
    # Killed by what may not kill: such a scenario has failed, so none is left here.
    print(f"chaos ok: scenarios={len(reports)} tasks={tasks} lost={lost} killed=0 overlapped={overlapped}")
    return True


def _interrupted(*_: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # once is enough: what follows is the tidying up
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
