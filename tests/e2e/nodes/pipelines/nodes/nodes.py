"""What the nodes of the end-to-end tests are given to do."""

import time

from runner.authoring import Context, dag, task


@task
def write(context: Context) -> str:
    """Keep a file where the other tasks find it."""
    key = f"nodes/{context.run_id}"
    context.storage.put(key, context.node.encode())
    return key


@task
def read(key: str, context: Context) -> str:
    return context.storage.get(key).decode()


@dag
def chain() -> None:
    """A file goes from one task to the next, through the storage."""
    read(write())


@task
def nap(context: Context) -> str:
    """Take as long as the run says."""
    time.sleep(float(context.params["seconds"]))
    return context.node


@dag(params={"seconds": 1})
def naps() -> None:
    nap()


@task
def hold(context: Context) -> None:
    """Keep a slot until the gate that the run names is open."""
    while not context.storage.exists(f"nodes/{context.params['gate']}"):
        time.sleep(1)


@dag(params={"gate": "none"})
def holds() -> None:
    hold()
