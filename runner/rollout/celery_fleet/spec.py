"""The file that describes a Celery fleet, read and checked; docs/celery-fleets.md explains it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from runner.settings import UsageError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
PLACEHOLDERS = ("host", "hostname", "instance", "release")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def seconds(value: object) -> float:
    """Seconds of 90, "90s", "10m", "2h". Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]?)", str(value).strip())
    if isinstance(value, bool) or found is None or found[2] not in _UNITS:
        raise ValueError(f"{value!r} is no duration: write 90s, 10m or 2h")
    return float(found[1]) * _UNITS[found[2]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Broker(_Part):
    """Where the application's workers take their tasks from, reached from where the roll is carried out.

    `$NAME` and `${NAME}` in the URL are taken from the environment. The other two as the application sets
    `broker_transport_options` and `control_exchange`.
    """

    url: str
    transport_options: dict[str, Any] = Field(default_factory=dict)
    control_exchange: str = "celery"

    @field_validator("url")
    @classmethod
    def _expanded(cls, value: str) -> str:
        missing = [n for n in re.findall(r"\$\{?(\w+)\}?", value) if n not in os.environ]
        if missing:
            raise ValueError(f"the environment variable {missing[0]} is not set")
        value = os.path.expandvars(value)
        if "://" not in value:
            raise ValueError("a broker's URL begins like redis:// or amqp://")
        return value


class Ssh(_Part):
    """How hosts are reached. A host whose key is not in `known_hosts` is refused."""

    user: str | None = None
    port: int = Field(22, ge=1, le=65_535)
    key: Path | None = None
    known_hosts: Path = Path("~/.ssh/known_hosts")
    jump: str | None = None  # user@host:port
    connect_timeout: float = 10.0

    _seconds = field_validator("connect_timeout", mode="before")(seconds)


class Host(_Part):
    """A machine. `workers` are the names of its Celery workers, where they differ from those of the others."""

    address: str = Field(min_length=1)
    port: int | None = Field(None, ge=1, le=65_535)
    workers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called in plans and results."""
        return self.address if self.port is None else f"{self.address}:{self.port}"


class AutoscalingGroup(_Part):
    """The hosts are the instances of a group. `in-place` updates them over SSH; `replace` terminates each one once it
    is idle, and the group starts another from its launch template."""

    name: str = Field(min_length=1)
    region: str
    address: Literal["private", "public"] = "private"
    strategy: Literal["in-place", "replace"] = "in-place"


class Commands(_Part):
    """What is run on a host over SSH. Each may be run again after a crash and must then do no harm."""

    stop: str
    update: str
    start: str
    check: str | None = None  # has to exit with 0 once the workers are back


class RollOptions(_Part):
    """How a roll goes. `batch`: hosts at once, a number or a share such as 25%."""

    batch: int | str = 1
    drain_deadline: float = 3600.0
    on_deadline: Literal["wait", "abort"] = "wait"
    command_timeout: float = 600.0
    back_timeout: float = 300.0
    idle_gap: float = 1.5  # between the two looks that have to find a worker idle; longer than its poll of the broker

    _seconds = field_validator("drain_deadline", "command_timeout", "back_timeout", "idle_gap", mode="before")(seconds)

    @field_validator("batch")
    @classmethod
    def _batch(cls, value: int | str) -> int | str:
        batch_size(value, 1)
        return value


class FleetSpec(_Part):
    """A Celery application's fleet: where it is, how it is spoken to, and how it is rolled."""

    fleet: str = Field(pattern=r"^[\w.-]+$")
    broker: Broker
    hosts: tuple[Host, ...] = ()
    autoscaling_group: AutoscalingGroup | None = None
    workers: tuple[str, ...] = ("celery@{hostname}",)
    ssh: Ssh = Ssh()
    commands: Commands | None = None
    roll: RollOptions = RollOptions()

    @field_validator("hosts", mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        """A host may be written as its address alone."""
        return [{"address": h} if isinstance(h, str) else h for h in value] if isinstance(value, list) else value

    @field_validator("workers")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if "@" not in name:
                raise ValueError(f"{name!r} is no name of a Celery worker: it has an @, as in celery@{{hostname}}")
        return value

    @model_validator(mode="after")
    def _whole(self) -> FleetSpec:
        if bool(self.hosts) == (self.autoscaling_group is not None):
            raise ValueError("name the machines: either `hosts` or `autoscaling_group`")
        names = [h.name for h in self.hosts]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise ValueError(f"the host {twice} is named twice")
        if self.commands is None and not self.replaces:
            raise ValueError("`commands` is missing: stop, update and start")
        return self

    @property
    def replaces(self) -> bool:
        """Whether instances are terminated, and not updated."""
        return self.autoscaling_group is not None and self.autoscaling_group.strategy == "replace"

    def uses(self, placeholder: str) -> bool:
        """Whether a worker's name or a command has this in braces."""
        commands = self.commands.model_dump().values() if self.commands else ()
        texts = [*self.workers, *(w for h in self.hosts for w in h.workers), *(c for c in commands if c)]
        return any(f"{{{placeholder}}}" in t for t in texts)


def fill(text: str, values: dict[str, str]) -> str:
    """Put values in the place of {host}, {hostname}, {instance} and {release}; other braces are left alone. Pure."""
    return _PLACEHOLDER.sub(lambda m: values[m[1]] if m[1] in values else m[0], text)


def batch_size(batch: int | str, hosts: int) -> int:
    """How many hosts a batch has, at least one. Raises ValueError for what is neither a number nor a share. Pure."""
    found = re.fullmatch(r"(\d+)\s*(%?)", str(batch).strip())
    if isinstance(batch, bool) or found is None or not int(found[1]) or (found[2] and int(found[1]) > 100):
        raise ValueError(f"{batch!r} is no batch: write 1 or more, or a share such as 25%")
    return max(1, hosts * int(found[1]) // 100) if found[2] else int(found[1])


class SpecError(UsageError):
    """The file is wrong: `problems` has one line for each mistake, with file and line."""

    def __init__(self, problems: Sequence[str]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more, "docs/celery-fleets.md says what may be there")
        self.problems = list(problems)


def load(path: Path) -> FleetSpec:
    """Read a file. Raises UsageError if it cannot be read, SpecError with every mistake in it."""
    try:
        source = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(
            f"{path}: {getattr(e, 'strerror', None) or 'not a text file'}", "name a fleet's file"
        ) from None
    try:
        tree = yaml.compose(source, yaml.SafeLoader)
        values = yaml.safe_load(source)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise SpecError([f"{where}: not YAML: {getattr(e, 'problem', None) or 'it cannot be read'}"]) from None
    if not isinstance(values, dict):
        raise SpecError([f"{path}: empty, or no mapping: it begins with `fleet: NAME`"])
    try:
        spec = FleetSpec.model_validate(values)
    except ValidationError as e:
        raise SpecError([_problem(path, tree, dict(error)) for error in e.errors()]) from None
    known = ", ".join(f"{{{p}}}" for p in PLACEHOLDERS)
    for name in [w for w in (*spec.workers, *(w for h in spec.hosts for w in h.workers))]:
        for found in _PLACEHOLDER.findall(name):
            if found not in PLACEHOLDERS:
                raise SpecError([f"{path}: workers: {name!r} has {{{found}}}; there are {known}"])
    return spec


def _problem(path: Path, tree: Any, error: dict[str, Any]) -> str:
    loc = [part for part in error["loc"] if part not in ("int", "str")]  # the branches of `batch`
    kind = error["type"]
    if kind == "extra_forbidden":
        said = "there is no such field"
    elif kind == "missing":
        said = "is missing"
    else:
        said = str(error["msg"]).removeprefix("Value error, ")
    field = ".".join(map(str, loc))
    return f"{path}:{_line(tree, loc)}: {field + ': ' if field else ''}{said}"


def _line(tree: Any, loc: Sequence[str | int]) -> int:
    """The line of a field, or of the nearest that is there around it."""
    node, line = tree, 0
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return line + 1
