"""Commands on hosts over SSH: one connection a command, so that none grows stale while a drain waits."""

from __future__ import annotations

import socket
import time
from typing import Any

from runner.rollout.celery_fleet.plan import Target
from runner.rollout.celery_fleet.spec import Ssh
from runner.settings import SluiceError

_CONNECT_TRIES = 3
_CONNECT_PAUSE_SECONDS = 1.0


class Shell:
    """A shell on each host. Raises SluiceError where a host is not reached or a command does not exit with 0."""

    def __init__(self, ssh: Ssh) -> None:
        self._ssh = ssh

    def run(self, target: Target, command: str, seconds: float) -> str:
        """Run a command and return what it printed."""
        from invoke.exceptions import CommandTimedOut
        from paramiko.ssh_exception import SSHException

        connection = self._open(target)
        try:
            # No terminal and no input: a command that asks something must not wait for an answer.
            done: Any = connection.run(command, hide=True, warn=True, timeout=seconds, in_stream=False)
        except CommandTimedOut:
            raise SluiceError(
                f"`{command}` has not ended within {seconds:g} s and may still run there",
                "look at the host; roll.command_timeout gives it longer",
            ) from None
        except (SSHException, OSError, EOFError) as e:
            raise SluiceError(f"the connection was lost during `{command}`: {_said(e)}", "") from None
        finally:
            connection.close()
        if done.failed:
            lines = [line for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
            said = f": {lines[-1].strip()}" if lines else ""
            raise SluiceError(f"`{command}` ended with {done.exited}{said}", "")
        return str(done.stdout)

    def _open(self, target: Target) -> Any:
        from fabric.connection import Connection
        from paramiko.client import RejectPolicy
        from paramiko.ssh_exception import AuthenticationException, BadHostKeyException, SSHException

        from runner.rollout.celery_fleet.remote import config

        connect: Any = Connection
        ssh = self._ssh
        known = ssh.known_hosts.expanduser()
        options: dict[str, Any] = {"banner_timeout": ssh.connect_timeout, "auth_timeout": ssh.connect_timeout}
        if ssh.key is not None:
            key = ssh.key.expanduser()
            if not key.is_file():
                raise SluiceError(f"the key {key} does not exist", "correct ssh.key")
            options |= {"key_filename": str(key), "look_for_keys": False}
        for tries in range(1, _CONNECT_TRIES + 1):
            connection: Any = connect(
                target.address,
                user=ssh.user,
                port=target.port,
                gateway=connect(ssh.jump) if ssh.jump else None,
                connect_timeout=max(1, round(ssh.connect_timeout)),
                connect_kwargs=options,
                config=config(),
            )
            for client in [connection.client, *([connection.gateway.client] if ssh.jump else [])]:
                client.set_missing_host_key_policy(RejectPolicy())
                if known.is_file():
                    client.load_host_keys(str(known))
            try:
                connection.open()
                return connection
            except AuthenticationException:
                raise SluiceError(
                    f"{target.address} does not let {connection.user} in", "check ssh.user and ssh.key"
                ) from None
            except BadHostKeyException:
                raise SluiceError(
                    f"{target.address} has another host key than {known} says",
                    "if the machine was made anew, correct that file; else somebody is in between",
                ) from None
            except (SSHException, OSError, EOFError) as e:
                connection.close()
                if "not found in known_hosts" in str(e):
                    raise SluiceError(
                        f"the host key of {target.address} is not in {known}",
                        f"`ssh-keyscan -p {target.port} {target.address}`, compared with the host's own, goes in there",
                    ) from None
                if tries == _CONNECT_TRIES:
                    raise SluiceError(
                        f"port {target.port} of {target.address} is not reached: {_said(e)}", "is the host up?"
                    ) from None
                time.sleep(_CONNECT_PAUSE_SECONDS)
        raise AssertionError


def _said(error: Exception) -> str:
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "no answer in time"
    return " ".join(str(error).split()) or type(error).__name__
