"""`runner`: the processes of a node, and what an author or an operator asks them. One file a noun, as it grows."""

from runner.cli import backfill, node, objects  # noqa: F401  (they add their commands)
from runner.cli.main import app, main

__all__ = ["app", "main"]
