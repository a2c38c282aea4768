"""What the agent keeps of its units on disk. How systemd takes its orders is tested on a real one: tests/e2e/units."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.agent import install, unit
from runner.agent.service import SupervisorError
from runner.agent.unit import UnitSupervisor
from runner.settings import Settings


def supervisor(home: Path, role: str = "worker", release: str = "r1") -> UnitSupervisor:
    return UnitSupervisor(Settings(home=home, role=role, release=release, supervisor="systemd"), "i-1")  # type: ignore[arg-type]


def test_the_first_worker_is_the_machines_own_node_and_stays_it(tmp_path: Path) -> None:
    here = supervisor(tmp_path)
    assert [here.node_id(r) for r in ("r1", "r2", "r1")] == ["i-1", "i-1.r2", "i-1"]
    # Also for an agent that was started from another release
    later = supervisor(tmp_path, release="r2")
    assert [later.node_id(r) for r in ("r3", "r2", "r1")] == ["i-1.r3", "i-1.r2", "i-1"]
    # The unit reads it from there, and nobody else may write it
    assert (tmp_path / "r2.env").read_text() == "SLUICE_NODE_ID=i-1.r2\n"
    assert (tmp_path / "r2.env").stat().st_mode & 0o777 == 0o644


def test_what_runs_once_is_one_node_of_the_release_it_was_switched_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit, "OPT", tmp_path / "opt")
    home = tmp_path / "home"
    home.mkdir()
    for release in ("r1", "r2"):
        (tmp_path / "opt/releases" / release).mkdir(parents=True)
    here = supervisor(home, "scheduler")
    assert (here.release(), here.node_id("r2")) == ("r1", "i-1")
    for _ in range(2):  # again after a crash in between
        here.switch("r2")
        assert here.current() == "r2" and supervisor(home, "scheduler").release() == "r2"


@pytest.mark.parametrize("name", ["", "../r", "-r", "r;reboot", "r r", "r@s"])
def test_only_what_can_be_the_id_of_a_release_becomes_the_name_of_a_unit(tmp_path: Path, name: str) -> None:
    with pytest.raises(SupervisorError, match="cannot be the id"):
        supervisor(tmp_path).service(name)


def test_a_machine_without_systemd_is_an_error_and_not_a_service_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SupervisorError, match="systemctl: No such file"):
        supervisor(tmp_path).service("r1").alive()


def test_an_installed_release_brings_its_units_where_they_are_and_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a machine with two units, of which one runs a release that is not among the newest
    opt, units, said = tmp_path / "opt", tmp_path / "units", tmp_path / "said"
    monkeypatch.setattr(install, "OPT", opt)
    monkeypatch.setattr(install, "UNITS", units)
    units.mkdir()
    (units / "runner-agent.service").write_text("old")
    for n in range(7):
        release = opt / f"releases/r{n}"
        (release / "systemd").mkdir(parents=True)
        os.utime(release, (n, n))
    (opt / "current").symlink_to(opt / "releases/r0")
    for name in ("runner-agent.service", "runner-web.service"):
        (opt / "releases/r6/systemd" / name).write_text("new")
    os.utime(opt / "releases/r6", (6, 6))
    systemctl = tmp_path / "bin/systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(f"#!/bin/sh\necho $1 >>{said}\necho runner-worker@r1.service loaded active running\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")
    # When the newest one is installed, twice
    for _ in range(2):
        install.replace_units(opt / "releases/r6")
        install.prune(keep={"r6", "r0"})
    # Then it has changed the unit that was there, once, and added none
    assert {p.name: p.read_text() for p in units.iterdir()} == {"runner-agent.service": "new"}
    assert said.read_text().split().count("daemon-reload") == 1
    # And what is left is the newest, the one in use, and the one that runs
    assert sorted(p.name for p in (opt / "releases").iterdir()) == ["r0", "r1", "r4", "r5", "r6"]
