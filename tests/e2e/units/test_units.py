"""The units on a real systemd: nothing that an operator or the machine does to them costs a task."""

from __future__ import annotations

import pytest

from runner.state import orders

from .conftest import Machine

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

WORKER = "runner-worker@r1.service"


def busy(machine: Machine) -> None:
    """Boot it, and give its worker the slow task."""
    machine.push()
    machine.boot()
    machine.wait(lambda: machine.state() == "ready")
    machine.start_run()
    machine.wait(lambda: machine.ledger() == ["start"])


def test_a_worker_unit_that_is_stopped_while_busy_drains(machine: Machine) -> None:
    # Given a worker with a task
    busy(machine)
    (worker,) = machine.show(WORKER, "MainPID")
    # Then it is the user's, closed in, and says that it is ready and alive
    assert machine.show(WORKER, "ActiveState", "User", "Slice") == ["active", "sluice", "runner-tasks.slice"]
    assert machine.run("stat", "-c", "%U", f"/proc/{worker}") == "sluice"
    assert machine.run("grep", "CapBnd", f"/proc/{worker}/status").endswith("0000000000000000")
    assert machine.run("grep", "NoNewPrivs", f"/proc/{worker}/status").endswith("1")
    assert machine.run("systemctl", "--failed", "--no-legend") == ""
    # When the agent is restarted, the worker does not notice
    machine.run("systemctl", "restart", "runner-agent.service")
    machine.wait(lambda: machine.show("runner-agent.service", "ActiveState") == ["active"])
    assert machine.show(WORKER, "MainPID", "NRestarts") == [worker, "0"]
    # When the unit is stopped with the agent away (it would start it again), it waits for the task
    machine.run("systemctl", "stop", "runner-agent.service")
    machine.run("systemctl", "stop", "--no-block", WORKER)
    machine.wait(lambda: machine.show(WORKER, "ActiveState") == ["deactivating"])
    assert machine.task()[0] == "running"
    # And once that has ended, exits 0
    machine.go()
    machine.wait(lambda: machine.show(WORKER, "ActiveState") == ["inactive"])
    assert machine.show(WORKER, "Result", "ExecMainStatus") == ["success", "0"]
    assert machine.task() == ("success", 0, 1)
    assert machine.ledger() == ["start", "end"]


def test_a_drain_survives_a_reboot_and_the_plug(machine: Machine) -> None:
    # Given a worker with a task that drains
    busy(machine)
    machine.cordon()
    machine.wait(lambda: machine.state() == "draining")
    # When the machine is rebooted, it waits for the task
    machine.run("systemctl", "reboot", check=False)
    machine.wait(lambda: machine.show(WORKER, "ActiveState") == ["deactivating"])
    machine.go()
    machine.power_on()
    # Then nothing is lost, and the worker is not started again
    machine.wait(lambda: machine.state() == "drained")
    assert machine.task() == ("success", 0, 1)
    machine.wait(lambda: machine.show("runner-agent.service", "ActiveState") == ["active"])
    assert machine.show(WORKER, "ActiveState") == ["inactive"]


def test_a_task_of_a_machine_that_lost_its_power_is_handed_on_by_the_next_boot(machine: Machine) -> None:
    busy(machine)
    machine.cordon()
    machine.wait(lambda: machine.state() == "draining")
    machine.power_off()
    machine.power_on()
    machine.wait(lambda: machine.state() == "drained")
    assert machine.task() == ("ready", 1, 0)


def test_a_scheduler_that_hangs_is_restarted_by_the_watchdog(machine: Machine) -> None:
    machine.set(SLUICE_ROLE="scheduler")
    machine.drop_in("runner-scheduler.service", "WatchdogSec=20", "RestartSec=1")
    machine.boot()
    machine.wait(lambda: machine.state() == "ready")
    pid, restarts = machine.show("runner-scheduler.service", "MainPID", "NRestarts")
    # When it hangs, so that it cannot even end
    machine.run("kill", "-STOP", pid)
    # Then systemd ends it and begins anew, and the agent has no part in it
    machine.wait(lambda: machine.show("runner-scheduler.service", "NRestarts") == [str(int(restarts) + 1)])
    machine.wait(lambda: machine.show("runner-scheduler.service", "ActiveState") == ["active"])
    assert machine.show("runner-scheduler.service", "MainPID") != [pid]
    machine.wait(lambda: machine.state() == "ready")
    assert machine.show("runner-agent.service", "NRestarts") == ["0"]


def test_a_worker_changes_to_another_release_in_place_and_back(machine: Machine) -> None:
    # Given a busy worker of one release, and another release that is published
    new = machine.publish_release()
    busy(machine)

    def order(release: str) -> str | None:
        with machine.engine.begin() as c:
            orders.give(c, "m1", release, reason="roll 7", by="someone", drain_seconds=600)
            found = orders.find(c, "m1")
        return found.error if found else None

    # When it is ordered to change to one that there is not, it says so and serves on
    machine.wait(lambda: order("nothing"))
    assert "nothing" in str(order("nothing")) and machine.state() == "ready"
    # When the machine is ordered to change
    order(new)
    # Then the new worker comes up beside the old one, which drains
    machine.wait(lambda: machine.state(f"m1.{new}") == "ready")
    machine.wait(lambda: machine.state("m1") == "draining")
    row = machine.node(f"m1.{new}")
    assert row is not None and row.release == new
    assert "of another release" in machine.run("systemctl", "cat", WORKER)
    assert machine.show(WORKER, "ActiveState") == ["active"] and machine.task()[0] == "running"
    # When the old one's task has ended
    machine.go()
    # Then it is gone, nothing was lost, and the agent itself is of the new release
    machine.wait(lambda: machine.state("m1") == "gone")
    assert machine.task() == ("success", 0, 1)
    assert machine.show(WORKER, "ActiveState", "ExecMainStatus") == ["inactive", "0"]
    machine.wait(lambda: machine.run("readlink", "-f", "/opt/sluice/current").endswith(f"/{new}"))
    machine.wait(lambda: machine.show("runner-agent.service", "NRestarts") == ["1"])
    # And back again, under the first one's name
    order("r1")
    machine.wait(lambda: machine.state("m1") == "ready")
    machine.wait(lambda: machine.state(f"m1.{new}") == "gone")
    machine.wait(lambda: machine.run("readlink", "-f", "/opt/sluice/current").endswith("/r1"))
