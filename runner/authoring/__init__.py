"""What a pipeline author imports: DAGs, tasks, the running task's context.

Imports nothing else of ours, except storage once a task uses it.
"""

from runner.authoring.assets import Asset
from runner.authoring.context import Context, get_current_context
from runner.authoring.dag import DAG, dag
from runner.authoring.errors import AuthoringError, Defer, Fail, ReturnValueError, Skip
from runner.authoring.group import TaskGroup
from runner.authoring.latest_only import latest_only
from runner.authoring.lookup import Connection, NotFoundError, connection, variable
from runner.authoring.notifiers import Notify
from runner.authoring.params import Param
from runner.authoring.spec import DagSpec, TaskSpec
from runner.authoring.task import Output, task
from runner.authoring.timetables import (
    Cron,
    Dates,
    Every,
    Except,
    Intersection,
    Manual,
    Market,
    Once,
    Sessions,
    Union,
)

__all__ = [
    "DAG",
    "Asset",
    "AuthoringError",
    "Connection",
    "Context",
    "Cron",
    "DagSpec",
    "Dates",
    "Defer",
    "Every",
    "Except",
    "Fail",
    "Intersection",
    "Manual",
    "Market",
    "NotFoundError",
    "Notify",
    "Once",
    "Output",
    "Param",
    "ReturnValueError",
    "Sessions",
    "Skip",
    "TaskGroup",
    "TaskSpec",
    "Union",
    "connection",
    "dag",
    "get_current_context",
    "latest_only",
    "task",
    "variable",
]
