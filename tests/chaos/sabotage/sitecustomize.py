"""Loaded by Python itself in the services of a scenario that names this folder in PYTHONPATH.

What is to be done here, without a switch in the product, is said by the environment:
CHAOS_MUTATION=name,…     take safeties away (mutate.py)
CHAOS_CRASH=probability   a scheduler ends between its commit and its ringing
CHAOS_CRASH_SWEEP=p       a scheduler ends in its sweep, before or after the commit that hands tasks on
CHAOS_WATCH=file          write down each claim that found nothing to take
CHAOS_CLOCK=file          the wall clock goes wrong by the seconds that the file says
"""

import os
import random
import sys
import time
from pathlib import Path


def _crash_before_ringing(probability: float) -> None:
    from runner.state.doorbell import Doorbell

    ring = Doorbell.ring

    def ring_or_die(self, messages):  # type: ignore[no-untyped-def]
        messages = list(messages)
        if messages and random.random() < probability:
            os._exit(70)
        return ring(self, messages)

    Doorbell.ring = ring_or_die  # type: ignore[method-assign]


def _crash_in_sweep(probability: float) -> None:
    import mutate

    from runner.state import transitions

    interrupt = transitions.interrupt_leases

    def interrupt_and_die(connection, *args, **kwargs):  # type: ignore[no-untyped-def]
        interrupted = interrupt(connection, *args, **kwargs)
        if interrupted and random.random() < probability:
            if random.random() < 0.5:
                connection.commit()
            os._exit(70)
        return interrupted

    mutate.replace("interrupt_leases", interrupt_and_die)


def _watch_claims(path: str) -> None:
    import mutate

    from runner.state import transitions

    claim = transitions.claim

    def watched(*args, **kwargs):  # type: ignore[no-untyped-def]
        found = claim(*args, **kwargs)
        if not found:
            with Path(path).open("a") as file:
                file.write(f"{args[1:]} {kwargs}\n")
        return found

    mutate.replace("claim", watched)


def _wrong_clock(path: str) -> None:
    now, now_ns = time.time, time.time_ns

    def ahead() -> float:
        try:
            return float(Path(path).read_text() or 0)
        except FileNotFoundError:
            return 0.0

    time.time = lambda: now() + ahead()
    time.time_ns = lambda: now_ns() + int(ahead() * 1e9)


def _sabotage(environment: "os._Environ[str]") -> None:
    if "CHAOS_CLOCK" in environment:
        _wrong_clock(environment["CHAOS_CLOCK"])
    if "CHAOS_MUTATION" in environment:
        import mutate

        for name in environment["CHAOS_MUTATION"].split(","):
            mutate.mutate(name)
    if "CHAOS_CRASH" in environment:
        _crash_before_ringing(float(environment["CHAOS_CRASH"]))
    if "CHAOS_CRASH_SWEEP" in environment:
        _crash_in_sweep(float(environment["CHAOS_CRASH_SWEEP"]))
    if "CHAOS_WATCH" in environment:
        _watch_claims(environment["CHAOS_WATCH"])


if "runner.cli" in sys.orig_argv:  # not in what runs the tasks
    try:
        _sabotage(os.environ)
    except Exception as e:  # site only prints it and goes on, unmutated
        print(f"sitecustomize: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
        os._exit(71)
