"""What a command writes: handed on to the task's log, its last line kept."""

from __future__ import annotations

import codecs
import sys

LINE_MAX = 64 * 1024  # bytes of a line that is returned


class Output:
    """One stream of a command, in the order it comes."""

    def __init__(self, to: str = "stdout") -> None:
        self._to = to
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._end = b""

    def add(self, data: bytes) -> None:
        """Write it to the log, and remember the end."""
        stream = getattr(sys, self._to)
        stream.write(self._decoder.decode(data))
        stream.flush()
        self._end = (self._end + data)[-2 * LINE_MAX :]

    def last_line(self) -> str:
        """The last line that is not empty, "" if there is none. Raises ValueError if it is too long to be a value."""
        lines = self._end.rstrip().splitlines()
        last = lines[-1] if lines else b""
        if len(last) > LINE_MAX:
            raise ValueError(f"the last line is longer than {LINE_MAX // 1024} KiB; put it in storage instead")
        return last.decode(errors="replace")
