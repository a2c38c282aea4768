"""The only code that changes the state of a run or a task: one file a subject, each change a guarded statement.

    waiting → ready → queued → running → success | failed | skipped
    waiting → deferred → success | failed | skipped     a sensor waits in a scheduler
    waiting → expanded → success | failed | skipped     a mapped task stands for its items
    waiting → skipped | upstream_failed                 by its trigger rule
    ready   → running                                   a slot that has just ended a task takes the next one itself
    running → up_for_retry → ready                      a retry with a delay
    running → ready                                     an interrupted attempt (uses no retry), a retry without delay
    queued  → ready                                     refused by a node that drains
    anything that is over → waiting                     cleared by a person; `records.LEGAL` is the whole table

All functions take a Connection inside the caller's transaction. Locks are taken in one order everywhere: node, DAG,
runs by id, and under their run's lock whatever is not running or about to run. What hands out or takes back work
(take, dispatch, heartbeats) never waits for a task's row: it skips what is locked. Times come from the database's
clock, never from a node's, and nothing but a retry's delay depends on them.
"""

from runner.state.transitions.admit import admit
from runner.state.transitions.by_hand import clear, end_run, mark, time_out_runs
from runner.state.transitions.dispatch import (
    LIVE_SLOTS,
    dispatch,
    queued,
    release,
    release_past,
    wake_retries,
)
from runner.state.transitions.finish import Finished, finish, sensed, sensor_says
from runner.state.transitions.lost import interrupt_leases, interrupt_node, interrupt_tokens, leases
from runner.state.transitions.records import LEGAL, Claim, Lease, Message, Outcome, Result, notify
from runner.state.transitions.runs import create_run, start_runs
from runner.state.transitions.take import claim, take
from runner.state.transitions.updates import updated_from_outside

__all__ = [
    "LEGAL",
    "LIVE_SLOTS",
    "Claim",
    "Finished",
    "Lease",
    "Message",
    "Outcome",
    "Result",
    "admit",
    "claim",
    "clear",
    "create_run",
    "dispatch",
    "end_run",
    "finish",
    "interrupt_leases",
    "interrupt_node",
    "interrupt_tokens",
    "leases",
    "mark",
    "notify",
    "queued",
    "release",
    "release_past",
    "sensed",
    "sensor_says",
    "start_runs",
    "take",
    "time_out_runs",
    "updated_from_outside",
    "wake_retries",
]
