"""Commands on a real SSH server: what comes back, and what is said when it does not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest
from fabric.runners import Remote

from runner.rollout.celery_fleet.drive import _summary
from runner.rollout.celery_fleet.plan import Target
from runner.rollout.celery_fleet.spec import Ssh
from runner.rollout.celery_fleet.ssh import Shell
from runner.settings import SluiceError

from .machines import SshServer


class Door:
    """A server, its host key in a file of known hosts, and two keys of which one opens it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        keys = {n: asyncssh.generate_private_key("ssh-ed25519") for n in ("host", "user", "stranger")}
        for name, key in keys.items():
            key.write_private_key(str(root / name))
        keys["user"].write_public_key(str(root / "authorized"))
        self.server = SshServer(root / "host", root / "authorized", {**os.environ, "HOME": str(root)})
        self.target = Target("door", "127.0.0.1", self.server.port)
        self.known_hosts = root / "known_hosts"
        self.trust(keys["host"])

    def trust(self, key: asyncssh.SSHKey) -> None:
        self.known_hosts.write_text(f"[127.0.0.1]:{self.server.port} {key.export_public_key().decode()}")

    def run(self, command: str, seconds: float = 60.0, key: str = "user") -> str:
        ssh = Ssh(key=self.root / key, known_hosts=self.known_hosts, connect_timeout=30.0)
        return Shell(ssh).run(self.target, command, seconds)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(tmp_path)
    yield door
    door.server.stop()


def test_a_command_is_run_and_answers(door: Door) -> None:
    assert door.run("echo one; echo two >&2") == "one\n"
    # One that asks something gets the end of its input, and no terminal to wait at
    assert door.run("read -r answer || echo nobody") == "nobody\n"


def test_a_command_that_fails_says_how(door: Door) -> None:
    with pytest.raises(SluiceError, match=r"`echo no disk >&2; exit 3` ended with 3: no disk"):
        door.run("echo no disk >&2; exit 3")


def test_a_command_that_does_not_end_is_not_waited_for(door: Door) -> None:
    began = time.monotonic()
    with pytest.raises(SluiceError, match=r"has not ended within 0\.5 s and may still run there"):
        door.run("sleep 3", 0.5)
    assert time.monotonic() - began < 60


def test_a_command_whose_time_is_up_says_so_however_long_its_channel_takes_to_close(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = Remote.kill

    def slowly(remote: Remote) -> None:
        kill(remote)
        time.sleep(1)

    monkeypatch.setattr(Remote, "kill", slowly)
    with pytest.raises(SluiceError, match=r"has not ended within 0\.5 s"):
        door.run("sleep 3", 0.5)


def test_who_is_not_who_they_say_is_refused(door: Door) -> None:
    with pytest.raises(SluiceError, match=r"does not let .* in"):
        door.run("true", key="stranger")
    door.trust(asyncssh.generate_private_key("ssh-ed25519"))
    with pytest.raises(SluiceError, match="has another host key than"):
        door.run("true")
    door.known_hosts.write_text("")
    with pytest.raises(SluiceError, match=r"the host key of 127\.0\.0\.1 is not in"):
        door.run("true")
    assert door.server.commands == []


def test_a_key_or_a_host_that_is_not_there_is_said(door: Door) -> None:
    with pytest.raises(SluiceError, match=r"the key .*/none does not exist"):
        door.run("true", key="none")
    door.server.stop()
    with pytest.raises(SluiceError, match=f"port {door.target.port} of 127.0.0.1 is not reached"):
        door.run("true")
    door.server = SshServer(door.root / "host", door.root / "authorized", {})


@pytest.mark.parametrize(
    ("consumed", "at_hand", "said"),
    [
        ({"a@x": [], "b@x": []}, {"a@x": 0, "b@x": 0}, ""),
        ({"a@x": []}, {"a@x": 0, "b@x": 0}, "b@x does not answer"),
        ({"a@x": [], "b@x": []}, {"a@x": 0}, "b@x does not answer"),
        ({}, {}, "a@x, b@x do not answer"),
        ({"a@x": [], "b@x": []}, {"a@x": 1, "b@x": 0}, "1 task left"),
        ({"a@x": ["celery"], "b@x": []}, {"a@x": 0, "b@x": 0}, "told to take no more tasks"),
    ],
)
def test_only_who_answers_and_has_nothing_is_idle(
    consumed: dict[str, list[str]], at_hand: dict[str, int], said: str
) -> None:
    assert _summary(Target("x", "x", 22, workers=("a@x", "b@x")), consumed, at_hand) == said
