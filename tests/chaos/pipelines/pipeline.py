"""What runs while things break: every task writes the ledger, and a retry used up by a fault can be seen."""

import json
import os
import random
import subprocess
import time
from datetime import timedelta
from pathlib import Path

from ledger import recorded

from runner.authoring import Context, dag, task


@task(retries=3, retry_delay=timedelta(0))
@recorded
def work(before: list[int], context: Context) -> int:
    """Take a time that run and task decide, so that it is the same in each attempt."""
    low, high = context.params.get("seconds", [0.05, 0.3])
    if context.attempt > 1:
        low, high = context.params.get("later", [low, high])
    if context.params.get("grandchild"):
        subprocess.Popen(["sleep", "600"])
    if "hog" in context.params and context.attempt <= context.params["hog"]["attempts"]:
        _hog()
    seconds = random.Random(f"{context.run_id} {context.task_id}").uniform(low, high)
    if context.params.get("lines"):
        _talk(context, context.params["lines"], seconds)
    else:
        time.sleep(seconds)
    return 1 + sum(before)


def _hog() -> None:
    """Take 300 MB, and wait for whoever ends processes that take too much."""
    taken = bytearray(300 << 20)
    taken[:: os.sysconf("SC_PAGE_SIZE")] = b"x" * len(range(0, len(taken), os.sysconf("SC_PAGE_SIZE")))
    time.sleep(60)
    raise MemoryError("nobody came to end this task")


def _talk(context: Context, lines: int, seconds: float) -> None:
    """Print lines, and write down beside the ledger after each how many are out."""
    path = Path(os.environ["SLUICE_LEDGER"]) / "spoken.jsonl"
    said = [context.dag_id, context.run_id, context.task_id, context.attempt, context.node]
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        for number in range(lines):
            print(f"line {number} of attempt {context.attempt}: {'é' * (number % 40)}", flush=True)
            os.write(fd, json.dumps([*said, number + 1]).encode() + b"\n")
            time.sleep(seconds / lines)
    finally:
        os.close(fd)


@dag
def one() -> None:
    work([])


@dag
def wide() -> None:
    for _ in range(20):
        work([])


@dag
def diamonds() -> None:
    """Ten chains of two that meet: 21 tasks."""
    work([work([work([])]) for _ in range(10)])
