"""Tasks as classes, one a file. What an operator needs beyond Python is imported when it runs, not before."""

from runner.authoring.operators.base import Operator
from runner.authoring.operators.bash import BashOperator, CommandError
from runner.authoring.operators.container import ContainerError, ContainerOperator
from runner.authoring.operators.email import EmailOperator
from runner.authoring.operators.files import CopyOperator
from runner.authoring.operators.http import HttpError, HttpOperator
from runner.authoring.operators.notify import NotifyError, NotifyOperator
from runner.authoring.operators.python import PythonOperator
from runner.authoring.operators.redshift import redshift_copy, redshift_unload
from runner.authoring.operators.sql import SQLError, SQLOperator
from runner.authoring.operators.transfer import SQLToStorage, StorageToSQL

__all__ = [
    "BashOperator",
    "CommandError",
    "ContainerError",
    "ContainerOperator",
    "CopyOperator",
    "EmailOperator",
    "HttpError",
    "HttpOperator",
    "NotifyError",
    "NotifyOperator",
    "Operator",
    "PythonOperator",
    "SQLError",
    "SQLOperator",
    "SQLToStorage",
    "StorageToSQL",
    "redshift_copy",
    "redshift_unload",
]
