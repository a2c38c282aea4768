"""Readiness and liveness for systemd, `Type=notify` (sd_notify(3)). Outside of systemd it does nothing."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def notify(state: str) -> None:
    """Send `READY=1`, `WATCHDOG=1`, `STOPPING=1` or `STATUS=…` to the service manager.

    One that does not take it within a second is not waited for, and is no error here: its own time limits notice.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        s.settimeout(1.0)
        s.connect(address)
        s.sendall(state.encode())


def without(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child that is no service of systemd's: it must not speak for its parent."""
    return {k: v for k, v in environ.items() if k not in VARIABLES}
