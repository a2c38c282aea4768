"""Loaded by Python itself in the processes of a scenario that names this folder in PYTHONPATH.

Takes one safety away (`CHAOS_MUTATION`) or ends a scheduler between its commit and its ringing (`CHAOS_CRASH`, a
probability), without a switch in the product. A pattern that is not found any more is an error, not a silent pass.
"""

import os
import random
import sys


def _without(name: str, old: str, new: str = "") -> None:
    from sqlalchemy import text

    from runner.state import transitions

    statement = getattr(transitions, name).text
    if old not in statement:
        raise RuntimeError(f"mutation: {name} has no {old!r} any more")
    setattr(transitions, name, text(statement.replace(old, new)))


def _mutate(mutations: set[str]) -> None:
    from runner.state import transitions

    if "token" in mutations:  # whoever says that a task has ended is believed
        _without("_FINISH", " AND t.lease_token = o.token")
    if "gate" in mutations:  # a node that drains may claim
        _without("_CLAIM", " AND state = 'ready' FOR SHARE")
    if "claim" in mutations:  # a message is believed whatever state its task is in
        _without("_CLAIM", " AND t.attempt = :attempt AND t.state = 'queued'")
    if "resend" in mutations:
        transitions.resend = lambda *_, **__: []
    if "reap" in mutations:
        transitions.interrupt_leases = lambda *_, **__: 0


def _crash_before_ringing(probability: float) -> None:
    from runner.state.doorbell import Doorbell

    ring = Doorbell.ring

    def ring_or_die(self, messages):  # type: ignore[no-untyped-def]
        messages = list(messages)
        if messages and random.random() < probability:
            os._exit(70)
        return ring(self, messages)

    Doorbell.ring = ring_or_die  # type: ignore[method-assign]


if os.environ.get("CHAOS_MUTATION") or os.environ.get("CHAOS_CRASH"):
    try:
        _mutate(set(os.environ.get("CHAOS_MUTATION", "").split(",")))
        if os.environ.get("CHAOS_CRASH"):
            _crash_before_ringing(float(os.environ["CHAOS_CRASH"]))
    except Exception as e:  # site only prints it and goes on, unmutated
        print(f"sitecustomize: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
        os._exit(71)
