"""Read an environment's file of connections, pools and variables, or find everything that is wrong with it."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from runner.objects.references import has_reference, problem
from runner.objects.secrets import MARK, Secret
from runner.settings import UsageError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")
SECTIONS = ("connections", "pools", "variables")
TEXT, NUMBER = "a text", "a whole number"
FIELDS = {
    "type": TEXT,
    "host": TEXT,
    "port": NUMBER,
    "login": TEXT,
    "password": TEXT,
    "schema": TEXT,
    "extra": "a mapping",
}
_PRIVATE = re.compile(r"password|passwd|secret|token|private|credential|api_?key", re.IGNORECASE)


@dataclass
class Objects:
    """What a file defines, by kind and name. Literal secrets are `Secret`s, references are texts as they are."""

    connection: dict[str, Any] = field(default_factory=dict)
    pool: dict[str, Any] = field(default_factory=dict)
    variable: dict[str, Any] = field(default_factory=dict)


class FileError(UsageError):
    """A file that cannot be applied; the message has a line for every problem."""


def read(path: Path) -> Objects:
    """The objects of a file. Raises FileError with every problem as file:line."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is no UTF-8"
        raise FileError(f"{path} cannot be read: {why}") from None
    reader = _Reader(str(path))
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 0
        raise FileError(f"{path}:{line}: no YAML: {e.problem}") from None
    except yaml.YAMLError as e:  # a character that YAML does not allow
        raise FileError(f"{path}: no YAML: {' '.join(str(e).split())}") from None
    found = reader.objects(root)
    if reader.problems:
        lines = [f"{path}:{line}: {what}" for line, what in sorted(reader.problems)]
        raise FileError("\n".join(lines), "nothing was changed")
    return found


class _Reader:
    def __init__(self, path: str) -> None:
        self.problems: list[tuple[int, str]] = []

    def wrong(self, node: yaml.Node, what: str) -> None:
        self.problems.append((node.start_mark.line + 1, what))

    def objects(self, root: yaml.Node | None) -> Objects:
        found = Objects()
        if root is None:
            return found
        for section, node in self.mapping(root, "the file", SECTIONS).items():
            for name, value in self.mapping(node, section).items():
                if not NAME.fullmatch(name):
                    self.wrong(value, f"{section}: name {name!r} must be 1 to 200 of A-Z a-z 0-9 _ . -")
                    continue
                what = f"{section[:-1]} {name!r}"
                if section == "connections":
                    found.connection[name] = self.connection(value, what)
                elif section == "pools":
                    found.pool[name] = self.pool(value, what)
                else:
                    found.variable[name] = self.value(value, what)
        return found

    def mapping(self, node: yaml.Node, what: str, known: tuple[str, ...] = ()) -> dict[str, yaml.Node]:
        """Key → node. With `known` no other key may be there."""
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return {}
        if not isinstance(node, yaml.MappingNode):
            self.wrong(node, f"{what} must be a mapping")
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is None:
                self.wrong(key, f"{what}: a key must be a text")
            elif name in found:
                self.wrong(key, f"{what}: {name!r} is there twice")
            elif known and name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
                self.wrong(key, f"{what}: unknown key {name!r}; {hint}")
            else:
                found[name] = value
        return found

    def connection(self, node: yaml.Node, what: str) -> Any:
        if isinstance(node, yaml.ScalarNode):
            url = self.value(node, what)
            text = url.value if isinstance(url, Secret) else url
            if not isinstance(text, str) or ("://" not in text and not has_reference(text)):
                self.wrong(node, f"{what} must be a mapping or a URL: type://login:password@host:port/schema")
                return None
            # A URL with a login may carry a password, and is one secret as a whole then.
            return {"url": Secret(text) if "@" in text and not has_reference(text) else url}
        found: dict[str, Any] = {}
        for name, value in self.mapping(node, what, tuple(FIELDS)).items():
            if name == "extra":
                extra = self.mapping(value, f"{what}: extra")
                found[name] = {k: self.value(v, f"{what}: extra.{k}", private=_is_private(k)) for k, v in extra.items()}
                continue
            given = self.value(value, f"{what}: {name}", private=name == "password")
            plain = given.value if isinstance(given, Secret) else given
            if FIELDS[name] == TEXT and not isinstance(plain, str):
                self.wrong(value, f"{what}: {name} must be a text, not {plain!r}; put it in quotes")
            elif FIELDS[name] == NUMBER and not self.whole(plain, 1, 65535):
                self.wrong(value, f"{what}: {name} must be 1 to 65535, not {given!r}")
            found[name] = given
        if isinstance(node, yaml.MappingNode) and "type" not in found:
            self.wrong(node, f"{what}: no type, e.g. type: postgresql")
        return found

    def pool(self, node: yaml.Node, what: str) -> Any:
        if isinstance(node, yaml.ScalarNode):
            slots, description = self.value(node, what), ""
        else:
            keys = self.mapping(node, what, ("slots", "description"))
            if isinstance(node, yaml.MappingNode) and "slots" not in keys:
                self.wrong(node, f"{what}: no slots")
            slots = self.value(keys["slots"], f"{what}: slots") if "slots" in keys else 0
            description = self.value(keys["description"], f"{what}: description") if "description" in keys else ""
            if not isinstance(description, str):
                self.wrong(node, f"{what}: description must be a text")
        if not self.whole(slots, 0, 2**31 - 1):
            self.wrong(node, f"{what}: slots must be a whole number, 0 or more, not {slots!r}")
        return {"slots": slots, "description": description}

    @staticmethod
    def whole(value: object, low: int, high: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    def value(self, node: yaml.Node, what: str, *, private: bool = False) -> Any:
        """Plain JSON values; `!secret` and what is private become Secrets, unless they only refer to one."""
        if isinstance(node, yaml.MappingNode):
            found = {
                k: self.value(v, f"{what}.{k}", private=_is_private(k)) for k, v in self.mapping(node, what).items()
            }
            if MARK in found:
                self.wrong(node, f"{what}: the key {MARK} is not allowed")
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self.value(v, what, private=private) for v in node.value]
        marked = node.tag == "!secret"
        plain = node.value if marked else self.scalar(node, what)
        if isinstance(plain, str):
            if wrong := problem(plain):
                self.wrong(node, f"{what}: {wrong}")
            if marked or (private and plain and not has_reference(plain)):
                return Secret(plain)
        return plain

    def scalar(self, node: yaml.Node, what: str) -> Any:
        loader = yaml.SafeLoader("")
        try:
            plain = loader.construct_object(node)
        except (yaml.YAMLError, ValueError):
            self.wrong(node, f"{what}: {node.tag} {node.value!r} is not understood; the only tag is !secret")
            return None
        finally:
            loader.dispose()
        if plain is not None and not isinstance(plain, str | int | float | bool):
            self.wrong(node, f"{what}: {node.value} is a {type(plain).__name__}; put it in quotes")
            return None
        if isinstance(plain, float) and plain - plain != 0:
            self.wrong(node, f"{what}: {node.value} is no number that JSON knows; put it in quotes")
        return plain


def _is_private(key: str) -> bool:
    return bool(_PRIVATE.search(key))
