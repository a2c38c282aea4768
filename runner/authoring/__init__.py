"""What a pipeline author imports: DAGs, tasks, the running task's context.

Imports nothing else of ours, except storage once a task uses it.
"""

from runner.authoring.assets import Asset
from runner.authoring.context import Context, get_current_context
from runner.authoring.dag import DAG, dag
from runner.authoring.errors import AuthoringError, Defer, Fail, ReturnValueError, Skip
from runner.authoring.group import TaskGroup
from runner.authoring.lookup import Connection, NotFoundError, connection, variable
from runner.authoring.spec import DagSpec, TaskSpec
from runner.authoring.task import Output, task

__all__ = [
    "DAG",
    "Asset",
    "AuthoringError",
    "Connection",
    "Context",
    "DagSpec",
    "Defer",
    "Fail",
    "NotFoundError",
    "Output",
    "ReturnValueError",
    "Skip",
    "TaskGroup",
    "TaskSpec",
    "connection",
    "dag",
    "get_current_context",
    "task",
    "variable",
]
