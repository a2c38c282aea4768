"""`${env:NAME}` and its like: where a secret is, instead of the secret. Resolved by the worker that needs it."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.objects.secrets import Secret
from runner.settings import SluiceError

SCHEMES = ("env", "file", "secretsmanager", "ssm")
CACHE_SECONDS = 60.0  # a secret that was rotated is seen within this time; AWS is asked once, not once a task

_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}")  # `$${` is a literal `${`


class LookupFailed(SluiceError):
    """A secret that is not where its reference says."""


def problem(text: str) -> str | None:
    """What is wrong with the references in a text; None if nothing is."""
    for match in _REFERENCE.finditer(text):
        reference = match.group(1)
        if reference is None:
            continue
        scheme, colon, name = reference.partition(":")
        if not colon or scheme not in SCHEMES or not name:
            return f"${{{reference}}} is no reference; write ${{{'|'.join(SCHEMES)}:NAME}}, or $${{ for a literal ${{"
        if scheme in ("file", "ssm") and not name.startswith("/"):
            return f"${{{reference}}}: {scheme} needs a path that begins with /"
    return None


def has_reference(text: str) -> bool:
    """Whether a text refers to anything."""
    return any(m.group(1) is not None for m in _REFERENCE.finditer(text))


class Resolver:
    """Resolves references on this machine. Thread-safe."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._known: dict[str, tuple[float, str]] = {}
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._read: dict[str, Callable[[str], str]] = {
            "env": _env,
            "file": _file,
            "secretsmanager": self._secretsmanager,
            "ssm": self._ssm,
        }

    def resolve(self, value: Any) -> Any:
        """The same value with every reference in it, however deep, replaced: a text that had one becomes a Secret.

        Raises LookupFailed naming the reference.
        """
        if isinstance(value, dict):
            return {k: self.resolve(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.resolve(v) for v in value]
        if isinstance(value, Secret):
            return Secret(self._filled(value.value))
        if isinstance(value, str):
            filled = self._filled(value)
            return Secret(filled) if has_reference(value) else filled
        return value

    def parts(self, value: Any) -> set[str]:
        """What the references in it stand for, each alone: a password is a secret outside of its URL too."""
        if isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
            return set().union(*(self.parts(v) for v in inner))
        text = value.value if isinstance(value, Secret) else value
        if not isinstance(text, str):
            return set()
        return {self._one(m.group(1)) for m in _REFERENCE.finditer(text) if m.group(1) is not None}

    def _filled(self, text: str) -> str:
        return _REFERENCE.sub(lambda m: "${" if m.group(1) is None else self._one(m.group(1)), text)

    def _one(self, reference: str) -> str:
        with self._lock:
            found = self._known.get(reference)
        if found and found[0] > time.monotonic():
            return found[1]
        scheme, _, name = reference.partition(":")
        if scheme not in self._read:
            raise LookupFailed(f"${{{reference}}} is no reference that this release knows")
        try:
            value = self._read[scheme](name)
        except LookupFailed as e:
            raise LookupFailed(f"${{{reference}}}: {e.message}") from None
        with self._lock:
            self._known[reference] = (time.monotonic() + CACHE_SECONDS, value)
        return value

    def _secretsmanager(self, name: str) -> str:
        name, hash_, key = name.rpartition("#") if "#" in name else (name, "", "")
        response = self._ask("secretsmanager", "get_secret_value", SecretId=name)
        if "SecretString" not in response:
            raise LookupFailed("the secret is binary, not text")
        text = str(response["SecretString"])
        if not hash_:
            return text
        try:
            return _text(json.loads(text)[key])
        except (ValueError, KeyError, TypeError):
            raise LookupFailed(f"the secret is no JSON object with a key {key!r}") from None

    def _ssm(self, name: str) -> str:
        return str(self._ask("ssm", "get_parameter", Name=name, WithDecryption=True)["Parameter"]["Value"])

    def _ask(self, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        with self._lock:
            if service not in self._clients:
                self._clients[service] = boto3.client(service, region_name=self._region)  # type: ignore[call-overload]
        try:
            return dict(getattr(self._clients[service], operation)(**arguments))
        except ClientError as e:
            raise LookupFailed(f"{e.response['Error'].get('Code')}: {e.response['Error'].get('Message')}") from None
        except BotoCoreError as e:
            raise LookupFailed(str(e)) from None


def _env(name: str) -> str:
    if name not in os.environ:
        raise LookupFailed("it is not in the worker's environment")
    return os.environ[name]


def _file(path: str) -> str:
    try:
        return Path(path).read_text().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise LookupFailed(e.strerror if isinstance(e, OSError) and e.strerror else "it is no text") from None


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
