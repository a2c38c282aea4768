"""Literal secrets: who sees them, and how they are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from runner.settings import UsageError

MARK = "$secret"  # {"$secret": token} stands in the database for an encrypted text


@dataclass(frozen=True)
class Secret:
    """A text that is in no repr, no log and no page."""

    value: str

    def __repr__(self) -> str:
        return "***"


class Cipher:
    """Encrypts with the first of the keys, decrypts with any: a key is replaced by putting the new one before it.

    `keys` are Fernet keys, separated by commas (SLUICE_SECRET_KEY). Raises UsageError for one that is none.
    """

    def __init__(self, keys: str) -> None:
        try:
            found = [Fernet(k.strip()) for k in keys.split(",") if k.strip()]
        except ValueError:
            raise UsageError("SLUICE_SECRET_KEY is not a list of Fernet keys", "make one: runner objects key") from None
        self._fernet = MultiFernet(found) if found else None

    def seal(self, value: Any) -> Any:
        """Plain JSON values, each Secret in them encrypted. Raises UsageError without a key."""
        return _walk(value, lambda v: {MARK: self._keys().encrypt(v.value.encode()).decode()}, Secret)

    def open(self, value: Any) -> Any:
        """The inverse of `seal`. Raises UsageError if no key fits."""

        def decrypt(sealed: dict[str, str]) -> Secret:
            try:
                return Secret(self._keys().decrypt(sealed[MARK]).decode())
            except InvalidToken:
                raise UsageError(
                    "a stored secret was encrypted with a key that is not in SLUICE_SECRET_KEY",
                    "add the old key after the new one, separated by a comma",
                ) from None

        return _walk(value, decrypt, dict, lambda v: set(v) == {MARK})

    def _keys(self) -> MultiFernet:
        if self._fernet is None:
            raise UsageError(
                "SLUICE_SECRET_KEY is not set, and there are secrets to encrypt or decrypt",
                "make a key with `runner objects key` and give it to workers and to whoever applies; or refer to the "
                "secret: ${secretsmanager:name#key}",
            )
        return self._fernet


def masked(value: Any) -> Any:
    """The same with `***` for every secret, decrypted or not."""
    value = _walk(value, lambda _: "***", dict, lambda v: set(v) == {MARK})
    return _walk(value, lambda _: "***", Secret)


def fields(value: Any) -> Any:
    """The same with the text of every Secret: for the one who uses it."""
    return _walk(value, lambda v: v.value, Secret)


def secrets_in(value: Any) -> set[str]:
    """The texts of all Secrets in it."""
    found: set[str] = set()
    _walk(value, lambda v: found.add(v.value), Secret)
    return found


def _walk(value: Any, change: Callable[[Any], Any], kind: type, when: Callable[[Any], bool] = lambda _: True) -> Any:
    if isinstance(value, kind) and when(value):
        return change(value)
    if isinstance(value, dict):
        return {k: _walk(v, change, kind, when) for k, v in value.items()}
    if isinstance(value, list):
        return [_walk(v, change, kind, when) for v in value]
    return value
