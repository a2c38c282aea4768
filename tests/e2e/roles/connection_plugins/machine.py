"""Ansible's way into a container that runs systemd: by its namespaces, which is ten times quicker than its engine's."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: machine
short_description: Enter the namespaces of a process
description: Commands run as root in all namespaces of a process of this machine.
author: Sluice
extends_documentation_fragment: [connection_pipelining]
options:
  pid:
    description: The process.
    type: int
    required: true
    vars: [{name: ansible_machine_pid}]
"""


class Connection(ConnectionBase):
    """Nothing is kept open between two commands."""

    transport = "machine"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def close(self) -> None:
        self._connected = False

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        return self._run(cmd, in_data or b"")

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        self._checked(f"cat > {out_path}", Path(in_path).read_bytes())

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        Path(out_path).write_bytes(self._checked(f"cat {in_path}"))

    def _checked(self, cmd: str, data: bytes = b"") -> bytes:
        code, out, err = self._run(cmd, data)
        if code:
            raise AnsibleError(f"{cmd}: {err.decode(errors='replace')}")
        return out

    def _run(self, cmd: str, data: bytes) -> tuple[int, bytes, bytes]:
        pid: Any = self.get_option("pid")
        enter = ["nsenter", f"--target={pid}", "--all", "--root", "--wd=/", "/bin/sh", "-c", cmd]
        done = subprocess.run(enter, input=data, capture_output=True, check=False)
        return done.returncode, done.stdout, done.stderr
