"""Fabric's way to run a command, made sure of whether its time was up."""

from __future__ import annotations

import contextlib
from typing import Any

from fabric.config import Config
from fabric.runners import Remote
from paramiko.ssh_exception import SSHException


class TimedRemote(Remote):
    """Invoke asks whether its timer has ended. It may be closing the channel still while the command's end is seen."""

    _late = False

    def kill(self) -> None:
        """The time is up. A connection that goes at the same moment is no error any more."""
        self._late = True
        with contextlib.suppress(SSHException, OSError, EOFError):
            super().kill()  # type: ignore[no-untyped-call]

    @property
    def timed_out(self) -> bool:
        """Whether it was ended because its time was up."""
        return self._late


def config() -> Any:
    """Fabric's configuration with that."""
    return Config(  # type: ignore[no-untyped-call]
        overrides={"runners": {"remote": TimedRemote}}
    )
