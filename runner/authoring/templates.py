"""Text with expressions such as `{{ logical_date | ds }}`: checked when a DAG is read, filled in when a task runs."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import zoneinfo
from typing import TYPE_CHECKING, Any

from runner.authoring.context import Context
from runner.authoring.errors import AuthoringError
from runner.authoring.lookup import connection, variable

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2 import Template as JinjaTemplate

NAMES = tuple(f.name for f in dataclasses.fields(Context))


class TemplateError(ValueError):
    """An expression that has no value in this run."""


@dataclasses.dataclass(frozen=True)
class Template:
    """Text that still has to be filled in. `where` names it in errors."""

    text: str
    where: str

    def check(self) -> None:
        """Raise AuthoringError for wrong syntax and for names that no run has."""
        from jinja2 import TemplateSyntaxError, meta

        try:
            tree = _environment().parse(self.text)
            _environment().compile(tree)
        except TemplateSyntaxError as e:
            raise AuthoringError(f"{self.where}: {e.message} in {_short(self.text)}") from None
        unknown = meta.find_undeclared_variables(tree) - set(NAMES) - set(_environment().globals)
        if unknown:
            known = ", ".join((*NAMES, "connection(…)", "variable(…)"))
            raise AuthoringError(f"{self.where}: unknown name {', '.join(sorted(unknown))}; there are {known}")

    def render(self, context: Context) -> str:
        """The text for this run. Raises TemplateError."""
        from jinja2 import TemplateError as JinjaError

        try:
            # Values of the run are never templates themselves: what a param or an upstream says stays text.
            return _compiled(self.text).render({name: getattr(context, name) for name in NAMES})
        except JinjaError as e:
            raise TemplateError(f"{self.where}: {e.message} in {_short(self.text)}") from None


def mark(value: Any, where: str, *, check: bool = True) -> Any:
    """The value with each text that has expressions as a Template, checked, inside lists, tuples and dicts too."""
    if isinstance(value, str):
        if "{{" not in value and "{%" not in value:
            return value
        template = Template(value, where)
        if check:
            template.check()
        return template
    return _inside(value, lambda item: mark(item, where, check=check))


def render(value: Any, context: Context) -> Any:
    """The value with each Template filled in."""
    if isinstance(value, Template):
        return value.render(context)
    return _inside(value, lambda item: render(item, context))


def _inside(value: Any, change: Any) -> Any:
    if isinstance(value, list):
        return [change(item) for item in value]
    if type(value) is tuple:
        return tuple(change(item) for item in value)
    if isinstance(value, dict):
        return {key: change(item) for key, item in value.items()}
    return value


@functools.lru_cache(maxsize=1024)
def _compiled(text: str) -> JinjaTemplate:
    return _environment().from_string(text)


@functools.cache
def _environment() -> Environment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        # `{#` is bash's: ${#array[@]}
        comment_start_string="{{#",
        comment_end_string="#}}",
    )
    environment.filters |= {
        "ds": lambda when: _time(when).strftime("%Y-%m-%d"),
        "ds_nodash": lambda when: _time(when).strftime("%Y%m%d"),
        "ts": lambda when: _time(when).isoformat(),
        "ts_nodash": lambda when: _time(when).strftime("%Y%m%dT%H%M%S"),
        "in_zone": lambda when, name: _time(when).astimezone(zoneinfo.ZoneInfo(name)),
        "plus": lambda when, **duration: _time(when) + dt.timedelta(**duration),
    }
    environment.globals = {"connection": connection, "variable": variable, "range": range}
    return environment


def _time(value: Any) -> dt.datetime:
    from jinja2 import TemplateRuntimeError

    if not isinstance(value, dt.datetime):
        raise TemplateRuntimeError(f"a time is needed, not {value!r}")
    return value


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else line[:79] + "…")
