"""Whether a process is still the one it was: a pid is given to another process once its own has ended."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import psutil


def birth(pid: int) -> str | None:
    """When the process with this pid started, as an opaque text; None if there is none or it is a zombie.

    On Linux: boot id and start in clock ticks since boot, which a change of the wall clock does not move.
    Elsewhere: the wall clock time of its creation.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError as e:
        if Path("/proc/self/stat").exists() or e.errno not in (errno.ENOENT, errno.ENOTDIR):
            return None
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(pid)
            if found.status() != psutil.STATUS_ZOMBIE:
                return f"{found.create_time():.2f}"
        return None
    # The command name may hold blanks and brackets: the fields are counted from its closing bracket.
    fields = text.rpartition(")")[2].split()
    # A zombie whose other threads still run holds its ports and files: it is not gone yet.
    gone = fields[0] == "X" or (fields[0] == "Z" and int(fields[17]) <= 1)
    return None if gone else f"{_boot_id()}:{fields[19]}"


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
