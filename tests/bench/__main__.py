"""The command line: `scripts/bench [-n RUNS] [CASE…]`. JSON lines on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from typing import NoReturn

from runner.settings import SluiceError
from tests.bench.cases import CASES, SLOTS, Bench, say
from tests.bench.fleet import engines

RUNS = 5


def main() -> int:
    """0 measured, 1 a case failed, 2 bad usage, 130 interrupted."""
    quick = [name for name, case in CASES.items() if case.quick]
    listed = "\n".join(f"  {name:9} {'' if case.quick else '(slow) '}{case.meaning}" for name, case in CASES.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure on real engines, with the processes of production.",
        epilog=f"cases:\n{listed}\nwithout a name: all that are not slow",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("-n", type=int, default=RUNS, metavar="RUNS", help=f"measurements a case ({RUNS})")
    wanted = parser.parse_args()
    unknown = [name for name in wanted.cases if name not in CASES]
    if unknown:
        print(f"error: no case {unknown[0]!r}; there are {', '.join(CASES)}", file=sys.stderr)
        return 2
    if wanted.n < 1:
        print(f"error: {wanted.n} measurements a case; at least 1", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        return measure(wanted.cases or quick, wanted.n)
    except SluiceError as e:
        print(f"error: {e.message}", *([f"hint: {e.hint}"] if e.hint else []), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def interrupt(*_: object) -> NoReturn:
    """Ctrl-C and TERM: everything that was started ends, the temporary directory goes.

    Once: a second Ctrl-C must not interrupt that.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def measure(names: list[str], runs: int) -> int:
    """Measure and print, case by case."""
    with engines() as made:
        say(f"PostgreSQL (fsync on) and Valkey in {made.directory}, one worker with {SLOTS} slots")
        bench = Bench(made, runs)
        for name in dict.fromkeys(names):
            start = time.monotonic()
            say(f"{name}: {CASES[name].meaning}")
            for found in CASES[name].measure(bench):
                print(json.dumps(found), flush=True)
            say(f"  took {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
