"""`deployctl configure`: real ansible-playbook runs, over hosts that are this machine, and a real inventory of AWS."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from rich.console import Console

from runner.deployctl.configure_view import Display, Tally, diff_lines, reason
from runner.deployctl.main import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # each start of ansible takes seconds of a core

ROOT = Path(__file__).parents[2]
ACCOUNT = "123456789012"  # the emulated AWS's own


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a site that writes a file, and fails where it is told to."""
    (tmp_path / "terraform/stacks").mkdir(parents=True)
    (tmp_path / "terraform/envs/local").mkdir(parents=True)
    (tmp_path / "terraform/envs/local/common.tfvars").write_text(
        f'env = "local"\nregion = "us-east-1"\naccount_id = "{ACCOUNT}"\n'
    )
    (tmp_path / "ansible/inventory").mkdir(parents=True)
    (tmp_path / "ansible/ansible.cfg").write_text("[defaults]\ngathering = explicit\n")
    (tmp_path / "ansible/site.yml").write_text("""
- hosts: all
  tasks:
    - name: Write
      ansible.builtin.lineinfile:
        path: "{{ folder }}/{{ inventory_hostname }}"
        regexp: ^
        line: new
    - name: Fail
      ansible.builtin.command: {argv: [sh, -c, "echo no disk >&2; exit 3"]}
      when: bad | default(false)
      changed_when: false
""")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inventory(tree: Path, **hosts: dict[str, Any]) -> Path:
    here = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    found = {name: here | {"folder": str(tree)} | extra for name, extra in hosts.items()}
    path = tree / "ansible/inventory/local.aws_ec2.yml"  # read as plain YAML by its content: it names no plugin
    path.write_text(json.dumps({"all": {"hosts": found}}))
    return path


def test_every_host_is_in_the_table_with_what_became_of_it(
    tree: Path, aws: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a host that is well, one that differs, one on which a task fails, one that is not there
    gone = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    inventory(tree, well={}, differs={}, fails={"bad": True}, gone=gone)
    for name in ("well", "fails"):
        (tree / name).write_text("new\n")
    (tree / "differs").write_text("old\n")
    # When it is asked what would change
    assert run(["configure", "--env", "local", "--check", "--limit", "well,differs"]) == 0
    # Then it says so, with the difference, and changes nothing
    said = capsys.readouterr()
    assert "differs  would change" in said.out and "well     unchanged" in said.out
    assert "-old" in said.err and "+new" in said.err
    assert (tree / "differs").read_text() == "old\n"
    # When it is done
    assert run(["configure", "--env", "local", "--json"]) == 1
    # Then one host's failure hides no other's success, and says why
    said = capsys.readouterr()
    found = {h["name"]: (h["result"], h["changed"]) for h in json.loads(said.out)}
    assert found == {
        "fails": ("failed", 0),
        "gone": ("unreachable", 0),
        "differs": ("changed", 1),
        "well": ("unchanged", 0),
    }
    assert "fails: Fail: no disk" in said.err
    assert "error: 2 of 4 hosts: fails, gone" in said.err
    assert (tree / "differs").read_text() == "new\n"


def test_nothing_to_do_is_a_mistake_of_the_caller(tree: Path, aws: str, capsys: pytest.CaptureFixture[str]) -> None:
    inventory(tree, well={})
    assert run(["configure", "--env", "local", "--limit", "nobody"]) == 2
    assert "no running instance of local matches 'nobody'" in capsys.readouterr().err
    assert run(["configure", "--env", "local", "--var", "nonsense"]) == 2
    assert run(["configure", "--env", "nowhere"]) == 2
    (tree / "ansible/inventory/local.aws_ec2.yml").unlink()
    assert run(["configure", "--env", "local"]) == 2
    assert "copy that of another environment" in capsys.readouterr().err


def test_another_account_is_refused(tree: Path, aws: str, capsys: pytest.CaptureFixture[str]) -> None:
    inventory(tree, well={})
    path = tree / "terraform/envs/local/common.tfvars"
    path.write_text(path.read_text().replace(ACCOUNT, "999999999999"))
    assert run(["configure", "--env", "local"]) == 3
    assert not (tree / "well").exists()


def test_a_playbook_that_is_broken_is_not_taken_for_an_empty_fleet(
    tree: Path, aws: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inventory(tree, well={})
    (tree / "ansible/site.yml").write_text("- hosts: all\n  tasks: [{name: x, nonsense: {}}]\n")
    assert run(["configure", "--env", "local"]) == 1
    assert "nonsense" in capsys.readouterr().err


def test_instances_are_found_by_their_tags(aws: str) -> None:
    # Given an environment's instances, one of another, one that has stopped
    ec2 = boto3.client("ec2", region_name="us-east-1")

    def launch(env: str, role: str, **more: str) -> str:
        tags = [{"Key": k, "Value": v} for k, v in {"Env": env, "Role": role, **more}.items()]
        answer = ec2.run_instances(
            ImageId="ami-12c6146b",
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
        )
        return str(answer["Instances"][0]["InstanceId"])

    worker, scheduler = launch("staging", "worker", Pool="big", Release="abc123"), launch("staging", "scheduler")
    launch("prod", "worker")
    ec2.stop_instances(InstanceIds=[launch("staging", "web")])
    # When the inventory of the environment is read
    found = _inventory("staging")
    # Then they are in groups by role, pool and release, and nobody else is there
    assert set(found["_meta"]["hostvars"]) == {worker, scheduler}
    assert found["role_worker"]["hosts"] == found["pool_big"]["hosts"] == found["release_abc123"]["hosts"] == [worker]
    assert found["role_scheduler"]["hosts"] == [scheduler]


def _inventory(env: str) -> Any:
    program = Path(sys.executable).with_name("ansible-inventory")
    path = ROOT / f"ansible/inventory/{env}.aws_ec2.yml"
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg")}
    done = subprocess.run([program, "-i", path, "--list"], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_pipe_gets_a_line_for_each_task() -> None:
    out = io.StringIO()
    tally = Tally()
    with Display(tally, console=Console(file=out, force_terminal=False, width=80)) as display:
        display.event({"event": "playbook_on_task_start", "event_data": {"task": "One"}})
        display.event({"event": "runner_on_ok", "event_data": {"host": "a", "task": "One", "res": {"changed": True}}})
        display.event({"event": "playbook_on_task_start", "event_data": {"task": "Two"}})
        display.event(
            {
                "event": "runner_on_failed",
                "event_data": {"host": "a", "task": "Two", "res": {"msg": "it [is] bad\nvery"}},
            }
        )
        ignored = {"host": "b", "task": "Two", "ignore_errors": True, "res": {"msg": "x"}}
        display.event({"event": "runner_on_failed", "event_data": ignored})
    assert out.getvalue().splitlines() == ["One", "Two", "✗ a: Two: it [is] bad"]
    assert [(h.name, h.result, h.what) for h in tally.hosts()] == [
        ("a", "failed", "Two: it [is] bad"),
        ("b", "unchanged", ""),
    ]


def test_reasons_and_differences() -> None:
    assert reason({"msg": "non-zero return code", "stderr": "trace\nno disk\n"}) == "no disk"
    assert (
        reason({"msg": "One or more items failed", "results": [{"msg": "ok"}, {"failed": True, "msg": "this"}]})
        == "this"
    )
    assert reason({}) == "it gives no reason"
    changed = {
        "changed": True,
        "diff": {"before": {"mode": "0644", "path": "/x"}, "after": {"mode": "0640", "path": "/x"}},
    }
    assert diff_lines(
        {"changed": True, "results": [changed, {"changed": False, "diff": {"before": "a", "after": "b"}}]}
    ) == [
        "-mode: 0644",
        "+mode: 0640",
    ]
    text = {"changed": True, "diff": [{"before": "a\nb\n", "after": "a\nc\n", "after_header": "/etc/x"}]}
    assert diff_lines(text) == ["/etc/x", "-b", "+c"]
