"""Secrets in a task's output, replaced on their way to the log store."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable
from urllib.parse import quote

SHORTEST = 4  # characters: a shorter text would be replaced all over the place
SHORTEST_LINE = 16  # of a secret of several lines, such as a private key


class Mask:
    """The secrets that one process has been told, and text without them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: frozenset[bytes] = frozenset()
        self._pattern: re.Pattern[bytes] | None = None

    def __bool__(self) -> bool:
        return self._pattern is not None

    def add(self, secrets: Iterable[str]) -> None:
        """Replace these from now on, also as they stand in URLs, JSON and Python."""
        forms = {form.encode() for secret in secrets for form in _forms(secret)}
        with self._lock:
            if forms <= self._known:
                return
            self._known |= forms
            longest_first = sorted(self._known, key=len, reverse=True)
            self._pattern = re.compile(b"|".join(re.escape(f) for f in longest_first))

    def text(self, text: str) -> str:
        """The text with `***` for every secret."""
        return self.whole(text.encode()).decode() if self else text

    def whole(self, data: bytes) -> bytes:
        """The same for bytes that nothing follows."""
        return self._pattern.sub(b"***", data) if self._pattern else data

    def part(self, data: bytes) -> tuple[bytes, bytes]:
        """Bytes that more may follow: (what is safe to show, the end that may be the beginning of a secret)."""
        with self._lock:
            pattern, known = self._pattern, self._known
        if pattern is None:
            return data, b""
        cut = len(data) - _beginning(data, known)
        for match in pattern.finditer(data):
            if match.start() < cut < match.end():
                cut = match.start()
        return pattern.sub(b"***", data[:cut]), data[cut:]


def _beginning(data: bytes, known: frozenset[bytes]) -> int:
    """How many bytes at the end of `data` are the beginning, but not all, of a secret; the most there can be."""
    longest = max(map(len, known))
    for size in range(min(longest - 1, len(data)), 0, -1):
        end = data[-size:]
        if any(len(k) > size and k.startswith(end) for k in known):
            return size
    return 0


def _forms(secret: str) -> Iterable[str]:
    lines = secret.splitlines() if "\n" in secret.strip() else []
    for text in (secret, secret.strip(), *(line for line in lines if len(line) >= SHORTEST_LINE)):
        if len(text) >= SHORTEST:
            yield from (text, quote(text, safe=""), quote(text), json.dumps(text)[1:-1], repr(text)[1:-1])
