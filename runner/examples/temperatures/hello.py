"""The smallest chain: four tasks, each takes what the one before it returned."""

from ledger import recorded

from runner.authoring import Context, dag, task


@task
@recorded
def name(context: Context) -> str:
    return str(context.params.get("name", "world"))


@task
@recorded
def greet(who: str) -> str:
    return f"hello {who}"


@task
@recorded
def count(greeting: str) -> int:
    return len(greeting)


@task
@recorded
def tell(greeting: str, letters: int) -> str:
    line = f"{greeting}: {letters} letters"
    print(line)
    return line


@dag(tags=["example"])
def hello() -> None:
    """Four tasks in a row."""
    greeting = greet(name())
    tell(greeting, count(greeting))
