"""The real terraform on a throw-away tree, its state and locks in the emulated S3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from runner.deployctl import environment, infra, main, operations, terraform
from runner.deployctl.operations import StackEvent
from runner.settings import RefusedError, UsageError

pytestmark = pytest.mark.terraform

ENGINES = {"engines": {"database_url": "postgresql://u:${p}@h/db", "broker_url": "redis://h"}}


def statuses(results: list[operations.StackResult]) -> dict[str, str]:
    return {r.stack: r.status for r in results}


def lock_is_held(stack: str) -> bool:
    env = environment.load("tiny")
    s3 = environment.client("s3", env, environment.process_environ(env))
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket=env.state_bucket).get("Contents", [])]
    return f"{env.state_key(stack)}.tflock" in keys


def deployctl(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runner.deployctl.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def _with_keep(*types: str) -> tuple[Any, ...]:
    defaults = terraform.Workspace.__init__.__defaults__ or ()
    return tuple(types if d is operations.planned.PROTECTED else d for d in defaults)


def wait_for_lock(process: subprocess.Popen[str], stack: str) -> None:
    """Wait until the apply of a stack is in the middle of its slow step."""
    log = Path(".sluice/terraform/tiny") / stack
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any("terraform_data.slow[0]: Creating..." in p.read_text() for p in log.glob("apply-*.log")):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("the apply did not begin")


def test_from_nothing_to_everything_and_back(tiny: Path) -> None:
    # Given an environment in which nothing stands
    events: list[StackEvent] = []
    assert statuses(infra.plan("tiny")) == {
        "network": "planned",
        "data": "waiting",
        "control": "waiting",
        "workers": "waiting",
    }

    # When all of it is applied
    results = infra.apply("tiny", on_event=events.append)

    # Then each stack is, after those it stands on
    assert set(statuses(results).values()) == {"applied"}
    ended = [e.stack for e in events if e.phase == "applied"]
    assert ended[:2] == ["network", "data"]
    assert max(e.done for e in events if e.stack == "network") == 3
    assert infra.outputs("tiny")["workers"] == {"size": 2, "database": "", "network_size": 2}

    # And the second time nothing changes, and init is not run again
    again: list[StackEvent] = []
    assert set(statuses(infra.apply("tiny", on_event=again.append)).values()) == {"unchanged"}
    assert not [e for e in again if e.phase == "init"]

    # And all of it can be taken down, dependents first
    events.clear()
    assert set(statuses(infra.destroy("tiny", on_event=events.append)).values()) == {"destroyed"}
    assert [e.stack for e in events if e.phase == "destroyed"][2:] == ["data", "network"]
    assert infra.outputs("tiny") == {}
    assert not list(tiny.parent.rglob("*.tfplan"))


def test_nothing_of_a_run_is_left_in_the_source_tree_but_the_dependency_lock(tiny: Path) -> None:
    infra.apply("tiny", ["network"])
    assert not list(tiny.rglob(".terraform"))
    assert (tiny.parent / ".sluice" / "terraform" / "tiny" / "network").is_dir()


def test_one_variable_changes_one_resource(tiny: Path) -> None:
    infra.apply("tiny", ["network"])
    (result,) = infra.plan("tiny", ["network"], variables={"size": 3})
    assert result.summary.line() == "1 to add, 1 to change"
    assert [c.address for c in result.summary.adds] == ["terraform_data.one[2]"]
    assert result.summary.changes[0].fields[0] == operations.planned.Field("input", "2", "3")


def test_with_engines_elsewhere_control_does_not_wait_for_data(tiny: Path) -> None:
    results = infra.apply("tiny", ["network", "control"], variables=ENGINES)
    assert statuses(results) == {"network": "applied", "control": "applied"}
    # A typed value arrives as it is, also what Terraform would otherwise read as a template.
    assert infra.outputs("tiny", ["control"])["control"]["database"] == "postgresql://u:${p}@h/db"


def test_a_stack_whose_ground_is_missing_is_refused_before_anything_starts(tiny: Path) -> None:
    with pytest.raises(UsageError) as e:
        infra.apply("tiny", ["workers"])
    assert e.value.message == "workers needs network and data, which are not applied yet"


def test_a_failure_names_the_resource_lets_others_finish_and_is_gone_on_from(tiny: Path) -> None:
    infra.apply("tiny", ["network", "data"])
    # When one of two stacks side by side fails
    with pytest.raises(operations.StacksFailedError) as e:
        infra.apply("tiny", ["control", "workers"], variables={"bad_workers": True, "wait": 2})
    # Then the other one finishes, and the line names the resource
    assert statuses(e.value.results) == {"control": "applied", "workers": "failed"}
    assert e.value.message.startswith("workers: terraform_data.bad_workers[0]: local-exec provisioner error")
    # And running it again without the mistake goes on
    assert statuses(infra.apply("tiny")) == {
        "network": "unchanged",
        "data": "unchanged",
        "control": "applied",
        "workers": "applied",
    }


def test_what_stands_on_a_failed_stack_is_not_started(tiny: Path) -> None:
    with pytest.raises(operations.StacksFailedError) as e:
        infra.apply("tiny", variables={"broken": True})
    assert statuses(e.value.results) == {
        "network": "failed",
        "data": "skipped",
        "control": "skipped",
        "workers": "skipped",
    }


def test_a_bad_value_is_the_callers_mistake(tiny: Path, capsys: Any) -> None:
    assert main.run(["infra", "plan", "--env", "tiny", "--stack", "network", "--var", "size=-1"]) == 2
    assert "Invalid value for variable: size must not be below zero, it is -1." in capsys.readouterr().err


def test_a_plan_that_destroys_what_is_protected_is_refused(tiny: Path, monkeypatch: Any, capsys: Any) -> None:
    infra.apply("tiny", ["network"])
    monkeypatch.setattr(operations.planned.PlanSummary.protected, "__defaults__", (("terraform_data",),))
    command = ["infra", "apply", "--env", "tiny", "--stack", "network", "--yes", "--var", "size=0"]
    assert main.run(command) == 3
    error = capsys.readouterr().err
    assert "error: the plan destroys terraform_data.one[0], terraform_data.one[1], which cannot be brought" in error
    assert infra.outputs("tiny", ["network"])["network"]["size"] == 2
    assert not list(tiny.parent.rglob("*.tfplan"))
    assert main.run([*command, "--allow-destroy"]) == 0


def test_destroying_the_ground_under_a_stack_is_refused(tiny: Path) -> None:
    infra.apply("tiny", ["network", "data"])
    with pytest.raises(RefusedError, match="data still stands on network"):
        infra.destroy("tiny", ["network"])


def test_no_terminal_and_no_yes_changes_nothing(tiny: Path, capsys: Any) -> None:
    # Given that pytest's standard input is no terminal
    assert main.run(["infra", "apply", "--env", "tiny", "--stack", "network"]) == 2
    assert "pass --yes" in capsys.readouterr().err
    assert infra.outputs("tiny") == {}


def test_json_is_all_that_is_on_stdout(tiny: Path) -> None:
    process = deployctl("infra", "apply", "--env", "tiny", "--stack", "network", "--yes", "--json")
    out, _err = process.communicate(timeout=60)
    assert process.returncode == 0
    (result,) = json.loads(out)
    assert result["status"] == "applied"
    assert len(result["add"]) == 3


def test_two_signals_in_the_middle_become_one_and_the_lock_is_given_back(tiny: Path) -> None:
    # Given an apply in the middle of a slow step
    process = deployctl("infra", "apply", "--env", "tiny", "--stack", "network", "--yes", "--var", "wait=60")
    wait_for_lock(process, "network")
    assert lock_is_held("network")
    # When its user presses Ctrl-C twice
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    # Then it ends at once, in order
    assert process.returncode == 130, err
    assert "interrupted; nothing is lost: running the same command again goes on" in err
    assert not lock_is_held("network")
    # And the next run goes on from there
    assert statuses(infra.apply("tiny", ["network"])) == {"network": "applied"}


def test_a_lock_held_by_another_run_says_who_and_since_when(tiny: Path) -> None:
    process = deployctl("infra", "apply", "--env", "tiny", "--stack", "network", "--yes", "--var", "wait=60")
    try:
        wait_for_lock(process, "network")
        with pytest.raises(operations.StacksFailedError) as e:
            infra.apply("tiny", ["network"])
        assert "network: the state is locked by " in e.value.message
        assert "(apply) since 20" in e.value.message
    finally:
        process.send_signal(signal.SIGTERM)  # as Ctrl-C
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert not lock_is_held("network")


def test_the_death_of_deployctl_does_not_break_off_the_change(tiny: Path) -> None:
    # Given an apply whose deployctl is killed in the middle
    process = deployctl("infra", "apply", "--env", "tiny", "--stack", "network", "--yes", "--var", "wait=2")
    wait_for_lock(process, "network")
    process.kill()
    process.communicate(timeout=60)
    # Then terraform ends the change and gives the lock back
    deadline = time.monotonic() + 30
    while lock_is_held("network") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert statuses(infra.plan("tiny", ["network"], variables={"wait": 2})) == {"network": "unchanged"}


def test_cancelling_from_another_thread(tiny: Path) -> None:
    cancel = terraform.Cancel()
    begun = threading.Event()

    def on_event(event: StackEvent) -> None:
        if event.resource == "terraform_data.slow[0]":
            begun.set()

    def stop() -> None:
        begun.wait(60)
        cancel.cancel()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(operations.CancelledError) as e:
        infra.apply("tiny", variables={"wait": 60}, on_event=on_event, cancel=cancel)
    thread.join()
    assert statuses(e.value.results)["network"] == "cancelled"
    assert not lock_is_held("network")


def test_what_cancelling_broke_off_is_gone_on_with_and_not_made_once_more(tiny: Path, monkeypatch: Any) -> None:
    # Given a resource of a kind that must not be made twice, whose creation is broken off
    monkeypatch.setattr(terraform.Workspace.__init__, "__defaults__", _with_keep("terraform_data"))
    cancel = terraform.Cancel()

    def on_event(event: StackEvent) -> None:
        if event.resource == "terraform_data.slow[0]":
            threading.Timer(0.5, cancel.cancel).start()

    with pytest.raises(operations.CancelledError):
        infra.apply("tiny", ["network"], variables={"wait": 60}, on_event=on_event, cancel=cancel)
    # Then the next plan does not destroy it
    (result,) = infra.plan("tiny", ["network"], variables={"wait": 60})
    assert not result.summary.replaces and not result.summary.destroys


def test_a_lost_provider_folder_is_put_back_by_itself(tiny: Path) -> None:
    infra.apply("tiny", ["network"])
    data = tiny.parent / ".sluice" / "terraform" / "tiny" / "network"
    (data / "terraform.tfstate").unlink()
    assert statuses(infra.plan("tiny", ["network"])) == {"network": "unchanged"}


def test_a_killed_holder_leaves_a_lock_that_unlock_takes_away(tiny: Path, capsys: Any) -> None:
    # Given a terraform that was killed with the lock in its hands
    process = deployctl("infra", "apply", "--env", "tiny", "--stack", "network", "--yes", "--var", "wait=60")
    wait_for_lock(process, "network")
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    for pid in children.split():
        os.killpg(int(pid), signal.SIGKILL)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    # When the next run says how to go on
    assert main.run(["infra", "plan", "--env", "tiny", "--stack", "network"]) == 1
    said = capsys.readouterr().err
    lock_id = said.partition("infra unlock --id ")[2].partition("`")[0]
    # Then doing so does
    assert main.run(["infra", "unlock", "--env", "tiny", "--stack", "network", "--id", lock_id]) == 0
    assert statuses(infra.plan("tiny", ["network"])) == {"network": "planned"}


def test_two_applies_at_once_one_is_refused_and_the_state_is_whole(tiny: Path) -> None:
    # When two start at the same moment
    command = ("infra", "apply", "--env", "tiny", "--stack", "network", "--yes", "--var", "wait=3")
    runs = [deployctl(*command, "--var", f"size={size}") for size in (3, 4)]
    ends = [run.communicate(timeout=110) for run in runs]
    codes = [run.returncode for run in runs]
    # Then each that ended well did its own, one after the other, and one that did not says why
    assert 0 in codes, ends
    for code, (_out, err) in zip(codes, ends, strict=True):
        assert code == 0 or "the state is locked by" in err or "somebody else applied this stack" in err, err
    size = infra.outputs("tiny", ["network"])["network"]["size"]
    assert size in {s for s, code in zip((3, 4), codes, strict=True) if code == 0}
    assert [r.status for r in infra.plan("tiny", ["network"], variables={"wait": 3, "size": size})] == ["unchanged"]
    assert not lock_is_held("network")


def test_one_that_may_wait_says_for_whom_and_goes_on_when_the_lock_is_free(tiny: Path) -> None:
    # Given a lock that somebody else holds
    env = environment.load("tiny")
    s3 = environment.client("s3", env, environment.process_environ(env))
    lock = {"Bucket": env.state_bucket, "Key": f"{env.state_key('network')}.tflock"}
    about = {
        "ID": "0b5b5b5b-0000-0000-0000-000000000000",
        "Operation": "OperationTypeApply",
        "Info": "",
        "Who": "ann@laptop",
        "Version": "1.11.4",
        "Created": "2030-01-02T03:04:05.123456789Z",
        "Path": f"{env.state_bucket}/{env.state_key('network')}",
    }
    s3.put_object(**lock, Body=json.dumps(about).encode())
    said: list[str] = []

    def on_event(event: StackEvent) -> None:
        if event.phase == "locked":
            said.append(event.text)
            threading.Timer(2, lambda: s3.delete_object(**lock)).start()

    # When another one may wait, then it says for whom, and applies once it can
    results = infra.apply("tiny", ["network"], wait_seconds=90, on_event=on_event)
    assert statuses(results) == {"network": "applied"}
    assert said[0].startswith("ann@laptop (apply) since 2030-01-02 03:04:05 UTC")


def test_a_plan_that_was_overtaken_is_made_and_looked_at_anew_if_one_may_wait(tiny: Path) -> None:
    # Given that somebody applies while the plan is looked at
    job = operations.prepare("tiny", ["network"], variables={"size": 6}, wait_seconds=60)
    looked: list[str] = []

    def look(plans: Any) -> bool:
        looked.append(plans[0].summary.line())
        if len(looked) == 1:
            infra.apply("tiny", ["network"], variables={"size": 5})
        return True

    # Then what is applied is a new plan, and it was looked at
    assert statuses(operations.apply(job, confirm=look)) == {"network": "applied"}
    assert looked == ["7 to add", "1 to add, 1 to change"]
    # And one that may not wait is told
    looked.clear()
    job = operations.prepare("tiny", ["network"], variables={"size": 7})
    with pytest.raises(operations.StacksFailedError, match="somebody else applied this stack"):
        operations.apply(job, confirm=look)


def test_a_lock_is_shown_and_not_taken_away_while_its_holder_is_alive(tiny: Path, capsys: Any) -> None:
    process = deployctl("infra", "apply", "--env", "tiny", "--stack", "network", "--yes", "--var", "wait=90")
    try:
        wait_for_lock(process, "network")
        assert main.run(["infra", "locks", "--env", "tiny", "--json"]) == 0
        (lock,) = json.loads(capsys.readouterr().out)
        assert lock["stack"] == "network" and lock["operation"] == "apply" and lock["here"] and lock["pid"]
        unlock = ["infra", "unlock", "--env", "tiny", "--stack", "network"]
        assert main.run([*unlock, "--id", lock["id"]]) == 3
        assert f"is alive: process {lock['pid']} on this machine" in capsys.readouterr().err
        assert lock_is_held("network")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert main.run(unlock) == 0
    assert "not locked" in capsys.readouterr().err


def test_what_destroys_something_protected_is_refused_also_by_destroy(
    tiny: Path, monkeypatch: Any, capsys: Any
) -> None:
    infra.apply("tiny", ["network"])
    monkeypatch.setattr(operations.planned, "PROTECTED", frozenset({"terraform_data"}))
    command = ["infra", "destroy", "--env", "tiny", "--yes"]
    assert main.run(command) == 3
    assert "error: this destroys terraform_data.one[0], terraform_data.one[1], terraform" in capsys.readouterr().err
    assert set(infra.outputs("tiny")) == {"network"}
    assert main.run([*command, "--allow-destroy"]) == 0


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("90", 90), ("90s", 90), ("10m", 600), ("1h", 3600)])
def test_a_time_to_wait(text: str, seconds: float) -> None:
    assert infra.parse_seconds(text) == seconds


def test_what_is_no_time_to_wait_is_refused() -> None:
    with pytest.raises(UsageError, match="is no time"):
        infra.parse_seconds("soon")
