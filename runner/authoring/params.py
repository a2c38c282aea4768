"""Params: what can be given to a run, checked by JSON Schema (draft 2020-12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.authoring.errors import AuthoringError
from runner.authoring.values import check_return_value

_MISSING: Any = object()


class Param:
    """One value that a run may be given: `Param(3, type="integer", minimum=1)`.

    Without a default each run must be given it, so the DAG can have no schedule. The keywords are those of JSON Schema;
    `description` is shown to people.
    """

    def __init__(self, default: Any = _MISSING, /, **schema: Any) -> None:
        self.schema = schema if default is _MISSING else {**schema, "default": default}


def to_json(dag: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """name → JSON Schema, `default` in it. Raises AuthoringError for a schema or a default that cannot be."""
    if not isinstance(params, Mapping):
        raise AuthoringError(f"{dag}: params must be a dict, name → default or Param, not {params!r}")
    found: dict[str, Any] = {}
    for name, value in params.items():
        if not isinstance(name, str) or not name:
            raise AuthoringError(f"{dag}: the name of a param must be text, not {name!r}")
        schema = value.schema if isinstance(value, Param) else {"default": value}
        try:
            found[name] = check_return_value(name, schema)
        except TypeError:
            raise AuthoringError(f"{dag}: param {name!r} must be JSON, not {value!r}") from None
        if isinstance(value, Param):
            _check_schema(f"{dag}: param {name!r}", found[name])
    wrong = problems(found, defaults(found), complete=False)
    if wrong:
        raise AuthoringError(f"{dag}: default of {wrong[0]}")
    return found


def _check_schema(where: str, schema: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    unknown = sorted(set(schema) - _KEYWORDS)
    if unknown:
        raise AuthoringError(f"{where}: JSON Schema has no keyword {unknown[0]!r}")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as e:
        raise AuthoringError(f"{where}: {e.json_path.removeprefix('$.')}: {e.message}") from None


def defaults(declared: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a run gets which is given none."""
    return {name: schema["default"] for name, schema in declared.items() if "default" in schema}


def required(declared: Mapping[str, Any]) -> list[str]:
    """Those that every run must be given."""
    return [name for name, schema in declared.items() if "default" not in schema]


def problems(declared: Mapping[str, Any], given: Mapping[str, Any], *, complete: bool = True) -> list[str]:
    """What is wrong with the params of a run, a line each. A DAG that declares none takes anything.

    complete: whether those without a default must be there.
    """
    if not declared:
        return []
    from jsonschema import Draft202012Validator

    found = [f"param {name!r}: the DAG has none of that name, but {', '.join(declared)}" for name in given if
             name not in declared]  # fmt: skip
    if complete:
        found += [f"param {name!r}: is required" for name in required(declared) if name not in given]
    for name in declared:
        if name in given:
            for error in Draft202012Validator(declared[name]).iter_errors(given[name]):
                where = name + error.json_path.removeprefix("$")
                message = " ".join(error.message.split())
                found.append(f"param {where!r}: {message if len(message) <= 300 else message[:299] + '…'}")
    return found


# A misspelt keyword would be ignored in silence.
_WORDS = """
additionalProperties allOf anyOf const contains default dependentRequired description else enum examples
exclusiveMaximum exclusiveMinimum format if items maxContains maxItems maxLength maxProperties maximum minContains
minItems minLength minProperties minimum multipleOf not oneOf pattern patternProperties prefixItems properties
propertyNames required then title type uniqueItems
"""
_KEYWORDS = frozenset(_WORDS.split())
