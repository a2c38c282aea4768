"""Tasks as classes, one a file. What an operator needs beyond Python is imported when it runs, not before."""

from runner.authoring.operators.base import Operator
from runner.authoring.operators.bash import BashOperator, CommandError
from runner.authoring.operators.python import PythonOperator

__all__ = ["BashOperator", "CommandError", "Operator", "PythonOperator"]
