"""What container nodes are made of; whether they boot is seen in tests/e2e/nodes."""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import subprocess
from pathlib import Path

import psycopg
import pytest
import redis

from runner.deployctl.local_cloud import LocalCloud
from runner.localcloud import bridge, containers, image, state
from runner.localcloud.containers import Container, Engine
from runner.localcloud.engines import Postgres, Valkey
from runner.localcloud.node import trouble
from runner.settings import RefusedError, SluiceError, UsageError

PODMAN, DOCKER = Engine("podman", ("podman",)), Engine("docker", ("docker",))


def container(tmp_path: Path) -> Container:
    return Container("c-i-1", "ip-10-64-16-4", "image:1", tmp_path, tmp_path / "log", {tmp_path / "a": "/etc/a:ro"})


@pytest.mark.parametrize("engine", [PODMAN, DOCKER])
def test_a_machine_has_no_way_out_and_no_more_rights_than_systemd_needs(engine: Engine, tmp_path: Path) -> None:
    argv = containers.create_argv(engine, container(tmp_path))
    assert argv[-2:] == ["image:1", "/sbin/init"]
    pairs = list(itertools.pairwise(argv))
    assert ("--network", "none") in pairs
    assert ("--label", f"sluice.directory={tmp_path}") in pairs
    assert ("--volume", f"{tmp_path}/a:/etc/a:ro") in pairs
    assert [value for flag, value in pairs if flag == "--cap-add"] == ["SYS_ADMIN", "SYS_PTRACE"]
    # The host's kernel parameters are the host's: /proc/sys stays read-only
    assert "--privileged" not in argv
    assert not any("unmask" in a or "systempaths" in a for a in argv)


def test_an_engine_that_fails_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "podman"
    broken.write_text("#!/bin/sh\necho first >&2\necho Error: no space left >&2\nexit 125\n")
    broken.chmod(0o755)
    with pytest.raises(SluiceError, match=r"^podman run: Error: no space left$"):
        Engine("podman", (str(broken),)).run("run")
    assert Engine("podman", (str(broken),)).inspect("c") is None


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="need root on Linux"):
        containers.find()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(containers.shutil, "which", lambda program: None)
    with pytest.raises(UsageError, match="no container engine") as e:
        containers.find()
    assert e.value.hint == "apt-get install podman runc"


def test_the_image_is_known_by_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.tag()
    assert before == image.tag()
    changed = tmp_path / "image.sh"
    changed.write_bytes(image.RECIPE.read_bytes() + b"# another line\n")
    monkeypatch.setattr(image, "RECIPE", changed)
    assert image.tag() != before


def test_the_host_has_the_last_address_of_a_free_network(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = [{"dst": "default"}, {"dst": "10.64.0.0/16"}, {"dst": "10.65.3.0/24"}, {"dst": "10.66.0.7"}]
    monkeypatch.setattr(bridge, "_ip", lambda *args: json.dumps(routes))
    assert bridge.free_cidr() == "10.67.0.0/16"
    host = bridge.address_in("10.67.0.0/16")
    assert host == "10.67.255.254"
    # Which no subnet of the network stack covers: they lie in the first quarter
    assert ipaddress.ip_address(host) not in ipaddress.ip_network("10.67.0.0/18")
    assert len(bridge.name_of(Path("/a/long/path" * 20))) <= 15


def test_engines_on_an_address_want_a_password(tmp_path: Path) -> None:
    # Given engines that listen on an address
    postgres = Postgres(tmp_path / "p", fast=True, address="127.0.0.1", password="secret")
    valkey = Valkey(tmp_path / "v", address="127.0.0.1", password="secret")
    try:
        postgres.start()
        url = postgres.create_database("sluice")
        broker = valkey.start()
        # Then who has the URL comes in
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("sluice",)
        with redis.Redis.from_url(broker) as known:
            assert known.ping()
        # And nobody else
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(url.replace("secret", "guess"))
        stranger = redis.Redis.from_url(broker.replace(":secret@", ""))
        with stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        # And the password is in no command line
        for pidfile in (postgres.pidfile, valkey.pidfile):
            pid = json.loads(pidfile.read_text())["pid"]
            assert b"secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        # And the address stays over a restart
        postgres.stop()
        postgres.start()
        assert postgres.url_of("sluice") == url
    finally:
        valkey.stop()
        postgres.stop()


def test_a_local_cloud_keeps_its_kind_of_nodes(tmp_path: Path) -> None:
    state.update(tmp_path, aws_endpoint="http://127.0.0.1:1")
    cloud = LocalCloud(tmp_path, nodes="containers")
    pidfile = tmp_path / "aws" / "aws.pid"
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        pidfile.parent.mkdir()
        from runner.telemetry.alive import birth

        pidfile.write_text(json.dumps({"pid": sleeper.pid, "started": birth(sleeper.pid)}))
        with pytest.raises(RefusedError, match="runs nodes as processes, not as containers"):
            cloud.check_nodes()
    finally:
        sleeper.kill()
        sleeper.wait()
    # One whose AWS has ended begins anew anyway
    assert cloud.check_nodes() == "containers"


def test_the_password_is_for_its_owner_alone(tmp_path: Path) -> None:
    state.update(tmp_path, password="secret")
    assert (tmp_path / "local.json").stat().st_mode & 0o777 == 0o600


def test_a_console_says_why_a_machine_is_not_up(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "console.log").write_text(
        "2026-05-04T03:02:01.5+00:00 stdout F [  12.5] cloud-init[71]: boot:    1.3 s  release abc fetched\r\n"
        "2026-05-04T03:02:02.5+00:00 stdout F [  13.5] cloud-init[71]: error: boot: scripts/bootstrap: exit 1: full\r\n"
    )
    assert trouble(tmp_path) == "error: boot: scripts/bootstrap: exit 1: full"
