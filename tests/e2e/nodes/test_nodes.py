"""Nodes as on AWS: launch template, cloud-init, release, Ansible, systemd. One fleet, in the order of a life."""

from __future__ import annotations

import io
import json
import multiprocessing
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from testinfra.host import Host

from runner.deployctl import client
from runner.deployctl.local_cloud import LocalCloud
from runner.localcloud import bridge, containers
from runner.localcloud.state import ENV
from runner.rollout.cloud import Cloud
from runner.rollout.fleet import LiveFleet
from runner.rollout.plan import Wish
from runner.state import nodes, rollouts
from runner.state.views import RolloutRow
from tests import drivers

from .conftest import HOME, POOL, SLOTS, Fleet, destroy, launch_monitoring
from .load import Load
from .phases import phases

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

TARGET_SECONDS = 60.0  # from launch to the first task, on a machine that has nothing else to do
UNITS = {
    "worker": "runner-worker@{release}.service",
    "scheduler": "runner-scheduler.service",
    "web": "runner-web.service",
}
BROKEN = "0bad0bad0bad"
WINDOW_SECONDS = 20.0  # in which throughput is measured


@pytest.fixture(scope="module", autouse=True)
def monitoring(fleet: Fleet) -> str:
    """The monitoring host. It boots while the first tests look at the others."""
    return launch_monitoring(fleet)


@pytest.fixture(scope="module")
def hung(fleet: Fleet) -> Iterator[tuple[str, int, float]]:
    """A scheduler that does nothing any more: its node, its process, and since when.

    It takes the watchdog two minutes to notice, so it hangs while other tests go on; the other scheduler works.
    """
    node = fleet.of_role("scheduler")[0]
    host = fleet.host(node)
    pid = int(host.check_output("systemctl show -p MainPID --value runner-scheduler"))
    host.run_expect([0], f"kill -STOP {pid}")
    yield node, pid, time.monotonic()
    host.run(f"kill -CONT {pid}")


def test_the_first_scheduler_has_made_the_schema_and_written_its_release_down(fleet: Fleet) -> None:
    # Given an environment whose database was empty when its first nodes booted
    (release,) = fleet.rows("SELECT id, created_by FROM release")
    assert release.id == fleet.cloud.state.release
    assert release.created_by in fleet.of_role("scheduler")


@pytest.mark.parametrize("role", ["scheduler", "web", "worker"])
def test_every_node_is_what_its_role_says(fleet: Fleet, role: str) -> None:
    # Given the nodes of a role, which have registered
    instances = fleet.of_role(role)
    assert instances
    assert set(instances) <= set(fleet.ready(role))
    release = fleet.cloud.state.release
    for instance in instances:
        for phase in phases(fleet, instance):
            print(f"{role:9} {instance} {phase}")
        host = fleet.host(instance)
        # Then cloud-init has finished, and nothing has failed
        fleet.eventually(lambda h=host: h.file("/run/cloud-init/result.json").exists, f"{instance} has booted")
        assert json.loads(host.file("/run/cloud-init/result.json").content_string)["v1"]["errors"] == []
        assert host.check_output("systemctl --failed --no-legend --plain") == ""
        # And the release of its tag is the current one, with its address in the VPC
        assert host.file("/opt/sluice/current").linked_to == f"/opt/sluice/releases/{release}"
        assert fleet.address(instance) in [a for i in host.interface.names() for a in host.interface(i).addresses]
        # And its services are as they should be: the agent comes back after a reboot, the rest comes through the agent
        agent = host.service("runner-agent")
        assert agent.is_running and agent.is_enabled
        unit = UNITS[role].format(release=release)
        assert host.service(unit).is_running
        assert host.check_output(f"systemctl is-enabled {unit}") == "static"
        exporter = host.service("prometheus-node-exporter")
        assert exporter.is_running and exporter.is_enabled


@pytest.mark.parametrize("role", ["scheduler", "web", "worker"])
def test_services_run_as_who_they_should_within_their_limits(fleet: Fleet, role: str) -> None:
    (instance, *_) = fleet.of_role(role)
    host = fleet.host(instance)
    user = host.user("sluice")
    assert (user.shell, user.home) == ("/usr/sbin/nologin", "/var/lib/sluice")
    config = host.file("/etc/sluice/node.env")
    assert (config.user, config.group, config.mode) == ("root", "sluice", 0o640)
    unit = UNITS[role].format(release=fleet.cloud.state.release)
    shown = host.check_output(
        f"systemctl show {unit}"
        " -p Type,NotifyAccess,User,KillMode,NoNewPrivileges,ProtectSystem,LimitCORE,Slice,MainPID"
    )
    found = dict(line.split("=", 1) for line in shown.splitlines())
    pid = int(found.pop("MainPID"))
    kept = {"Type": "notify", "NotifyAccess": "main", "User": "sluice", "KillMode": "mixed", "NoNewPrivileges": "yes"}
    kept |= {"ProtectSystem": "strict", "LimitCORE": "0"}
    assert {k: v for k, v in found.items() if k in kept} == kept
    assert found["Slice"] == ("runner-tasks.slice" if role == "worker" else "runner-control.slice")
    # And not only in systemd's words
    assert host.process.get(pid=pid).user == "sluice"
    status = host.file(f"/proc/{pid}/status").content_string
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    assert host.run(f"nsenter -t {pid} -m touch /etc/sluice/it-was-here").rc != 0


def test_services_listen_where_they_should(fleet: Fleet) -> None:
    (web, *_), (scheduler, *_) = fleet.of_role("web"), fleet.of_role("scheduler")
    assert fleet.host(web).socket("tcp://0.0.0.0:8080").is_listening
    with urllib.request.urlopen(f"http://{fleet.address(web)}:8080/health", timeout=30) as answer:
        assert answer.status == 200
    # Flower answers beside a scheduler
    assert fleet.host(scheduler).service("runner-flower").is_running
    url = f"http://{fleet.address(scheduler)}:5555/healthcheck"
    assert fleet.eventually(lambda: get(url), "Flower answers")
    # And every node shows its figures
    for role in ("worker", "scheduler", "web"):
        for instance in fleet.of_role(role):
            figures = get(f"http://{fleet.address(instance)}:9100/metrics")
            assert "node_memory_MemAvailable_bytes" in figures


def test_figures_are_collected_and_a_job_may_leave_its_own(fleet: Fleet, monitoring: str) -> None:
    # Given a monitoring host, which boots as every machine does
    host, gateway = fleet.host(monitoring), f"http://{fleet.address(monitoring)}:9091"
    fleet.eventually(lambda: get(f"{gateway}/-/ready"), "the push gateway answers", 1800)
    # When a job leaves a figure
    figure = "/metrics/job/nightly/instance/books"
    request = urllib.request.Request(gateway + figure, data=b"rows_loaded 42\n", method="PUT")
    urllib.request.urlopen(request, timeout=30).close()
    # Then the gateway holds it, and Prometheus has it and those of every worker's node exporter
    assert 'rows_loaded{instance="books",job="nightly"} 42' in get(f"{gateway}/metrics")

    def ask(query: str) -> dict[str, float]:
        said = host.run(f"curl -sfG http://127.0.0.1:9090/api/v1/query --data-urlencode 'query={query}'").stdout
        found = json.loads(said)["data"]["result"] if said else []
        return {row["metric"]["instance"]: float(row["value"][1]) for row in found}

    fleet.eventually(lambda: ask("rows_loaded") == {"books": 42.0}, "Prometheus has what was pushed")
    workers = {f"{fleet.address(w)}": 1.0 for w in fleet.of_role("worker")}
    fleet.eventually(lambda: ask('up{job="node-worker"}') == workers, "Prometheus scrapes the workers")
    for service in ("prometheus", "prometheus-alertmanager", "prometheus-pushgateway"):
        assert host.service(service).is_running and host.service(service).is_enabled


def test_a_pipeline_runs_and_its_files_go_through_the_storage(fleet: Fleet) -> None:
    run = fleet.start("chain")
    fleet.eventually(lambda: fleet.state(run) in ("success", "failed"), "the run ends")
    assert fleet.state(run) == "success", fleet.history(run)
    assert {node for _, _, node in fleet.history(run) if node} <= set(fleet.of_role("worker"))


@pytest.mark.usefixtures("hung")
def test_a_worker_unit_that_is_stopped_finishes_its_task_and_exits_with_0(fleet: Fleet) -> None:
    # Given a worker that is busy
    run, node = fleet.nap(20)
    host = fleet.host(node)
    unit = UNITS["worker"].format(release=fleet.cloud.state.release)
    pid = int(host.check_output(f"systemctl show -p MainPID --value {unit}"))
    # When its unit is stopped
    began = host.check_output("date '+%Y-%m-%d %H:%M:%S'")
    host.run_expect([0], f"systemctl stop {unit}")
    # Then the task was finished first, by the attempt that was running
    assert fleet.state(run) == "success"
    assert [(state, attempt) for state, attempt, n in fleet.history(run) if n == node] == [
        ("running", 1),
        ("success", 1),
    ]
    # And the process that was stopped has exited with 0
    said = host.check_output(f"journalctl --no-pager -u {unit} --since '{began}'")
    assert "Deactivated successfully" in said, said
    assert f"Killing process {pid}" not in said
    assert "status=0" in said or "code=exited" not in said, said


def test_a_new_worker_boots_by_itself_and_takes_a_task(fleet: Fleet) -> None:
    # Given more tasks than the workers have slots
    before = set(fleet.members())
    held = [fleet.start("holds", gate="scale-out") for _ in range(SLOTS * len(before))]
    try:
        fleet.eventually(lambda: all(map(fleet.node_of, held)), "every slot is taken")
        waiting = fleet.start("naps", seconds=1)
        # When there shall be one worker more
        fleet.size(len(before) + 1)
        (new,) = fleet.eventually(lambda: set(fleet.members()) - before, "an instance is launched")
        # Then it takes what is waiting, and each step of the way is known
        fleet.eventually(lambda: fleet.state(waiting) == "success", f"{new} takes a task", 1200)
    finally:
        fleet.open_gate("scale-out")
    assert {node for _, _, node in fleet.history(waiting) if node} == {new}
    found = phases(fleet, new)
    print("\n" + "\n".join(f"{new} {phase}" for phase in found))
    total = found[-1].seconds
    verdict = "held" if total <= TARGET_SECONDS else "MISSED"
    print(f"{new} launch to first task: {total:.1f} s; target {TARGET_SECONDS:g} s {verdict}")
    # And its group hears that it serves
    fleet.eventually(lambda: fleet.lifecycle(new) == "InService", f"{new} is in service")
    fleet.eventually(lambda: all(fleet.state(run) == "success" for run in held), "the others end")


def test_a_node_that_is_rebooted_while_it_drains_goes_on_draining(fleet: Fleet) -> None:
    # Given a draining node with a task
    run, node = fleet.nap(30)
    with fleet.engine.begin() as connection:
        assert nodes.cordon(connection, node, reason="reboot test", by="e2e", deadline_seconds=600)
    # When its plug is pulled
    fleet.reboot(node)
    fleet.eventually(lambda: "power on again" in fleet.said(node), "the machine is powered on again")
    # Then its task is handed on and done elsewhere, without using up a retry
    fleet.eventually(lambda: fleet.state(run) in ("success", "failed"), "the run ends", 600)
    assert fleet.state(run) == "success", fleet.history(run)
    states = [(state, n) for state, _, n in fleet.history(run) if n]
    other = states[-1][1]
    assert other != node
    assert states == [("running", node), ("ready", node), ("running", other), ("success", other)]
    # And it takes no work any more: what it was told has outlived the reboot
    fleet.eventually(lambda: fleet.node_state(node) == "drained", "the node is drained")
    host = fleet.host(node)
    fleet.eventually(lambda: host.service("runner-agent").is_running, "the agent runs again")
    assert not host.service(f"runner-worker@{fleet.cloud.state.release}").is_running
    # Nobody needs it any more
    fleet.autoscaling.terminate_instance_in_auto_scaling_group(InstanceId=node, ShouldDecrementDesiredCapacity=True)
    fleet.eventually(lambda: node not in fleet.members(), "it has left its group")


def test_a_broken_release_never_takes_work_and_gives_its_instance_back(fleet: Fleet) -> None:
    # Given a release whose bootstrap fails, for the instances to come
    before = set(fleet.members())
    fleet.publish(BROKEN, broken_release())
    fleet.tag_group(BROKEN)
    try:
        # When one more worker is wanted
        fleet.size(len(before) + 1)
        (new,) = fleet.eventually(lambda: set(fleet.members()) - before, "an instance is launched")
        # Then it says what is wrong, on its console and in its tag
        fleet.eventually(lambda: fleet.tag(new, "Boot"), f"{new} says why")
        reason = "scripts/bootstrap: exit 1: error: bootstrap: this one is broken"
        assert fleet.tag(new, "Boot") == f"failed: {reason}"
        fleet.eventually(lambda: f"error: boot: {reason}" in fleet.console(new), "the console says it, too")
        # And the group takes it back
        fleet.eventually(lambda: new not in fleet.members(), f"{new} is given back")
    finally:
        fleet.size(len(before))
        fleet.tag_group(fleet.cloud.state.release)
    # And it has never been a node, nor are those that worked before disturbed
    assert fleet.rows("SELECT 1 FROM node WHERE node_id = :n", n=new) == []
    fleet.eventually(lambda: set(fleet.members()) == before, "the group is as it was")


def test_a_scheduler_that_hangs_is_started_again_by_the_watchdog(fleet: Fleet, hung: tuple[str, int, float]) -> None:
    # Given a scheduler that was stopped in its tracks a while ago
    node, pid, since = hung
    host = fleet.host(node)
    # Then another process takes its place
    running = "systemctl show -p MainPID --value runner-scheduler"
    fleet.eventually(lambda: int(host.check_output(running)) not in (0, pid), "the watchdog acts", 400)
    fleet.eventually(lambda: host.check_output("systemctl is-active runner-scheduler || true") == "active", "it is up")
    print(f"\nhung for at most {time.monotonic() - since:.0f} s")
    said = host.check_output("journalctl --no-pager -u runner-scheduler")
    assert "Watchdog timeout" in said, said
    assert node in fleet.eventually(lambda: fleet.ready("scheduler"), "the scheduler has registered")


def test_a_roll_in_place_keeps_the_throughput(fleet: Fleet, tmp_path: Path) -> None:
    # Given workers that never wait for a task
    release = fleet.next_release(tmp_path)
    workers = set(fleet.members())
    fleet.eventually(lambda: set(fleet.ready("worker")) >= workers, "all workers serve")
    with Load(fleet, tasks=3 * SLOTS * len(workers)) as load:
        fleet.eventually(lambda: load.running() == SLOTS * len(workers), "every slot is taken")
        began = load.now()
        time.sleep(2 * WINDOW_SECONDS)
        # When they get another release in place
        filed = load.now()
        said = deployctl("roll", "--workers", "--strategy", "in-place", "--release", release, "--yes")
        ended = load.now()
    print(f"\n{said}")
    # Then they have never done less in any window than before
    before = load.work(began, filed) / (filed - began)
    starts = range(int(ended - filed - WINDOW_SECONDS) + 1)
    least = min(load.work(filed + s, filed + s + WINDOW_SECONDS) / WINDOW_SECONDS for s in starts)
    print(f"roll in place of {len(workers)} workers: {ended - filed:.0f} s; slots at work {before:.2f} before,")
    print(f"at least {least:.2f} in any {WINDOW_SECONDS:g} s of it ({least / before:.0%})")
    assert least >= 0.95 * before
    # And each machine runs the new release and nothing else; no task was interrupted
    for worker in workers:
        assert_runs_only(fleet.host(worker), release)
    assert load.interrupted() == 0


def test_a_roll_in_place_whose_drivers_are_killed_at_every_point_ends_as_if_none_had_been(fleet: Fleet) -> None:
    # Given workers of another release than the one the fleet began with, and tasks for all slots
    release = fleet.cloud.state.release
    workers = set(fleet.members())
    with client.connect(ENV) as c, Load(fleet, tasks=2 * SLOTS * len(workers)) as load:
        facts = LiveFleet(c.engine, Cloud(c.settings.region), c.settings, "worker", POOL).facts()
        assert facts.outdated(release)
        wish = Wish(release, strategy="in-place", drain_seconds=120)
        roll = drivers.file(c.engine, c.artifacts(), facts, wish, owner="driver 0")

        def view() -> RolloutRow:
            with c.engine.connect() as connection:
                return rollouts.get(connection, roll)

        # When each of its drivers is killed after the first or second thing that it does or writes down
        killed, began = 0, time.monotonic()
        while view().state == "running":
            assert time.monotonic() < began + 600, view()
            killed += 1
            doomed = (fleet.cloud.state.database_url, c.settings, roll, f"driver {killed}", 1 + killed % 2)
            process = multiprocessing.get_context("spawn").Process(target=drivers.drive, args=doomed)
            process.start()
            process.join(300)
            assert process.exitcode in (0, -signal.SIGKILL)
        # Then the roll has succeeded all the same
        assert (view().state, view().error) == ("succeeded", None)
        print(f"\nroll in place of {len(workers)} workers: {killed} drivers, {time.monotonic() - began:.0f} s")
        assert killed > 2 * len(workers)
    # And the machines are those that there were, each with one worker, of that release; no task was interrupted
    assert set(fleet.members()) == workers
    for worker in workers:
        assert_runs_only(fleet.host(worker), release)
    assert load.interrupted() == 0


def assert_runs_only(host: Host, release: str) -> None:
    """That there is one worker on the machine, and of which release."""
    units = host.check_output("systemctl list-units --plain --no-legend --state=active 'runner-worker@*'")
    assert [line.split()[0] for line in units.splitlines()] == [UNITS["worker"].format(release=release)]
    assert host.file("/opt/sluice/current").linked_to == f"/opt/sluice/releases/{release}"


def deployctl(*args: str) -> str:
    """What a command says that has to succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "runner.deployctl.main", *args, "--env", ENV], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_nothing_is_left_after_destroy(fleet: Fleet, monitoring: str) -> None:
    fleet.ec2.terminate_instances(InstanceIds=[monitoring])
    engine, name = containers.find(), bridge.name_of(HOME)
    assert engine.containers(HOME)
    # When Terraform takes away what it has made
    began = time.monotonic()
    destroy(fleet.cloud)
    print(f"\ndestroyed in {time.monotonic() - began:.0f} s")
    # Then there is no machine any more
    fleet.eventually(lambda: not engine.containers(HOME), "the containers are gone")
    # And when the local cloud is taken down, nothing at all
    fleet.engine.dispose()
    LocalCloud(HOME).down()
    assert not HOME.exists()
    assert not bridge.remove(name)


def get(url: str) -> str:
    """The text of a page, empty while there is none."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def broken_release() -> bytes:
    out = io.BytesIO()
    files = {"manifest.json": json.dumps({"id": BROKEN, "files": {}})}
    files["scripts/bootstrap"] = "#!/bin/sh\necho 'error: bootstrap: this one is broken' >&2\nexit 1\n"
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size, info.mode, info.mtime = len(content), 0o755, int(datetime.now(UTC).timestamp())
            tar.addfile(info, io.BytesIO(content.encode()))
    return out.getvalue()
