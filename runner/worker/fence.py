"""What the kernel does for a child when nobody else can: end it with its parent, end it with its lease."""

from __future__ import annotations

import ctypes
import os
import signal

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_CLOCK_BOOTTIME = 7  # counts while suspended, and no clock change moves it
_SIGEV_SIGNAL = 0


class _SigEvent(ctypes.Structure):
    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("pad", ctypes.c_char * 48),
    ]


class _TimerSpec(ctypes.Structure):
    _fields_ = [
        ("interval_sec", ctypes.c_long),
        ("interval_nsec", ctypes.c_long),
        ("value_sec", ctypes.c_long),
        ("value_nsec", ctypes.c_long),
    ]


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when `parent` dies, whatever it dies of. Exits at once if it is dead already."""
    if _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """Take back `die_with_parent`."""
    _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


class Deadline:
    """A kernel timer that sends this process SIGKILL: it works while the process hangs or is stopped.

    timer_create(2) with SIGEV_SIGNAL; SIGKILL can be neither caught nor blocked, and ends a stopped process too.
    """

    def __init__(self) -> None:
        event = _SigEvent(signo=int(signal.SIGKILL), notify=_SIGEV_SIGNAL)
        self._timer = ctypes.c_void_p()
        if _libc.timer_create(_CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer)) != 0:
            raise OSError(ctypes.get_errno(), "timer_create")

    def arm(self, seconds: float) -> None:
        """End this process in so many seconds, unless it is armed again before. 0 or less ends it now."""
        seconds = max(seconds, 1e-6)
        self._set(int(seconds), int(seconds % 1 * 1e9))

    def disarm(self) -> None:
        """Let the process live on, between two tasks."""
        self._set(0, 0)

    def _set(self, seconds: int, nanoseconds: int) -> None:
        spec = _TimerSpec(value_sec=seconds, value_nsec=nanoseconds)
        if _libc.timer_settime(self._timer, 0, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timer_settime")
