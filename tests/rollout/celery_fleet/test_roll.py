"""`deployctl roll --fleet` on a plain Celery application: real workers, a real broker, real SSH, and a ledger."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from .machines import Group, Shop, until

Run = Callable[..., tuple[int, str, str]]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_roll_under_load_loses_nothing_and_does_nothing_twice(shop: Shop, deployctl: Run) -> None:
    # Given tasks that keep coming, some of them with a countdown
    with shop.load():
        until(lambda: shop.lines("end"))
        # When the fleet is rolled, one host at a time
        code, out, err = deployctl("roll", "--fleet", shop.file, "--release", "2", "--yes")
    # Then both hosts run the new version, each drained before it was stopped
    assert code == 0, err
    assert [m.version.read_text().strip() for m in shop.machines] == ["2", "2"]
    assert out.count("rolled in") == 2
    # And every task ran once, on the old version or on the new one
    assert shop.check() == {"1", "2"}
    assert len(shop.consuming()) == 4 and not shop.state.exists()


def test_a_failure_on_one_host_names_it_and_is_gone_on_with(shop: Shop, deployctl: Run) -> None:
    # Given an update that fails on one of two hosts that are rolled at once
    west = shop.machines[1]
    (west.home / "broken").touch()
    update = "test ! -e $SHOP_HOME/broken && echo {release} > $SHOP_VERSION"
    shop.describe(batch="100%", update=update, check="test -s $SHOP_VERSION")
    with shop.load():
        # When the fleet is rolled
        code, out, err = deployctl("roll", "--fleet", shop.file, "--release", "2", "--yes", "--json")
        # Then the one is rolled, and the other is named, with what went wrong
        assert code == 1
        results = {h["host"]: h for h in json.loads(out)["hosts"]}
        assert results[shop.host(0)]["ok"] and "ended with 1" in results[shop.host(1)]["result"]
        assert f"the roll stopped: {shop.host(1)}" in err and "Traceback" not in err
        # And half an update takes no tasks
        assert not west.pids and shop.consuming() == {"a@east", "b@east"}
        # And another release is refused, as long as this one is not over
        code, _, err = deployctl("roll", "--fleet", shop.file, "--release", "3", "--yes")
        assert code == 3 and "the roll of shop to 2 is not over" in err
        # And the plan has what is left
        code, out, _ = deployctl("roll", "--fleet", shop.file, "--plan", "--json")
        assert code == 0
        assert [(s["host"], s["action"]) for s in json.loads(out)["steps"]] == [
            (shop.host(1), a) for a in ("update", "start", "back", "check")
        ]
        # When it is mended, the same command goes on
        (west.home / "broken").unlink()
        code, _, err = deployctl("roll", "--fleet", shop.file, "--yes")
    assert code == 0, err
    assert west.version.read_text().strip() == "2" and len(shop.consuming()) == 4
    shop.check()


def test_a_host_that_is_not_idle_in_time_takes_tasks_again(shop: Shop, deployctl: Run) -> None:
    # Given tasks on all slots that last longer than the deadline
    shop.hold(8)
    shop.describe(drain_deadline="2s", on_deadline="abort")
    # When the fleet is rolled
    code, out, err = deployctl("roll", "--fleet", shop.file, "--release", "2", "--yes")
    # Then it stops there, and nobody was stopped
    assert code == 1 and "not idle within 2 s" in err and "left" in err
    assert "not begun" in out
    until(lambda: len(shop.consuming()) == 4)
    assert shop.machines[0].version.read_text() == "1"
    # When one that may wait is interrupted while it does
    shop.describe()
    command = [sys.executable, "-m", "runner.deployctl.main", "roll", "--fleet", str(shop.file), "--yes"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if "tasks left" in line:
                process.send_signal(signal.SIGINT)
    # Then it calls its drain off, and says how to go on
    assert process.returncode == 130 and "the same command goes on" in said, said
    until(lambda: len(shop.consuming()) == 4)
    assert shop.state.exists()
    # And a roll that was only begun can be taken back
    code, out, _ = deployctl("roll", "--fleet", shop.file, "--abort")
    assert code == 0 and not shop.state.exists()
    shop.let_go()
    shop.check()


def test_a_worker_that_is_silent_is_never_taken_for_idle(shop: Shop, deployctl: Run) -> None:
    # Given a worker that is stopped in the middle of a task, as one that is cut off looks
    shop.send(1.0, queue="celery")
    until(lambda: shop.lines("start"))
    frozen = shop.machines[0].pids[0]
    os.kill(frozen, signal.SIGSTOP)
    try:
        # Then the roll does not begin
        code, _, err = deployctl("roll", "--fleet", shop.file, "--release", "2", "--yes")
        assert code == 3 and "a@east does not answer" in err
        assert not any("unit" in c for m in shop.machines for c in m.ssh.commands)
    finally:
        os.kill(frozen, signal.SIGCONT)
    shop.check()


def test_a_roll_that_was_killed_at_any_step_goes_on(shop: Shop) -> None:
    command = [sys.executable, "-m", "runner.deployctl.main", "roll", "--fleet", str(shop.file), "--yes"]

    def killed_at(words: str, *more: str) -> None:
        with subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = ""
            for line in process.stderr:
                said += line
                if words in line:
                    process.kill()
                    return
            raise AssertionError(said)

    shop.describe(batch="100%")
    with shop.load():
        until(lambda: shop.lines("end"))
        # Given a roll whose terminal was killed in each of these steps
        killed_at("drain: running: ", "--release", "2")
        killed_at("stop: running")
        killed_at("update: running")
        killed_at("back: running")
        # When the same command is given once more
        done = subprocess.run(command, capture_output=True, text=True)
    # Then it comes to its end
    assert done.returncode == 0, done.stderr
    assert [m.version.read_text().strip() for m in shop.machines] == ["2", "2"]
    assert len(shop.consuming()) == 4
    # And nothing is lost, and nothing was done twice
    shop.check()


def test_the_instances_of_a_group_are_replaced_one_by_one(shop: Shop, deployctl: Run, aws: str) -> None:
    # Given the workers as instances of an autoscaling group, each with the newest version when it boots
    shop.stop()
    with Group(shop, size=2) as group:
        before = group.members()
        until(lambda: len(shop.consuming()) == 2)
        shop.file.write_text(
            f"fleet: shop\nbroker: {{url: '{shop.broker}'}}\nworkers: ['w@{{instance}}']\n"
            f"autoscaling_group: {{name: {group.name}, region: eu-west-1, strategy: replace}}\n"
            "roll: {back_timeout: 60s}\n"
        )
        with shop.load(pause=0.3):
            until(lambda: shop.lines("end"))
            group.version.write_text("2")
            # And tasks on each of them whose time has not come: a machine that goes gives nothing back
            for _ in range(8):
                shop.send(0.05, countdown=15)
            # When the group is rolled
            code, out, err = deployctl("roll", "--fleet", shop.file, "--yes", "--json")
        # Then every instance is another one, and none was terminated before it was idle
        assert code == 0, err
        assert all(h["ok"] for h in json.loads(out)["hosts"])
        assert len(group.members()) == 2 and not set(group.members()) & set(before)
        assert shop.check() == {"1", "2"}
