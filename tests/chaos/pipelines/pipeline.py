"""What runs while things break: every task writes the ledger, and a retry used up by a fault can be seen."""

import random
import subprocess
import time
from datetime import timedelta

from ledger import recorded

from runner.authoring import Context, dag, task


@task(retries=3, retry_delay=timedelta(0))
@recorded
def work(before: list[int], context: Context) -> int:
    """Take a time that run and task decide, so that it is the same in each attempt."""
    low, high = context.params.get("seconds", [0.05, 0.3])
    if context.params.get("grandchild"):
        subprocess.Popen(["sleep", "600"])
    time.sleep(random.Random(f"{context.run_id} {context.task_id}").uniform(low, high))
    return 1 + sum(before)


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
