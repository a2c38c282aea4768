"""`runner`: the processes of a node, and what an author or an operator asks them. One file a noun, as it grows."""

from runner.cli import backfill, node  # noqa: F401  (adds its commands)
from runner.cli.main import app, main

__all__ = ["app", "main"]
