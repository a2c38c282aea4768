"""A Python function as an operator: what `@task` does, for those who like classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runner.authoring.context import Context
from runner.authoring.operators.base import Operator


class PythonOperator(Operator):
    """Calls `function(*args, **kwargs)` and returns what it returns.

    A parameter named `context` that was not given gets the running task's context.
    """

    template_fields = ("args", "kwargs")

    def __init__(
        self,
        task_id: str,
        *,
        function: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(task_id, **options)
        self.function = function
        self.args = list(args)
        self.kwargs = dict(kwargs or {})

    def execute(self, context: Context) -> Any:
        """Call the function."""
        signature = inspect.signature(self.function)
        kwargs = dict(self.kwargs)
        if (
            "context" in signature.parameters
            and "context" not in signature.bind_partial(*self.args, **kwargs).arguments
        ):
            kwargs["context"] = context
        return self.function(*self.args, **kwargs)
