"""How a terraform process is run and stopped, seen through a stand-in that notes what reaches it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.deployctl import messages, terraform

Fake = Callable[[str], terraform.Workspace]

_READY = 'print(\'{"@message": "ready", "type": "apply_start"}\', flush=True)'


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """A workspace whose `terraform` is this Python code, with `arguments` as its list of words."""

    def make(code: str) -> terraform.Workspace:
        binary = tmp_path / "terraform"
        binary.write_text(
            "#!/usr/bin/env python3\nimport os, signal, sys, time\narguments = sys.argv[1:]\n"
            'if arguments[0] == "init":\n    sys.exit(0)\n' + code
        )
        binary.chmod(0o755)
        source = tmp_path / "stacks" / "one"
        source.mkdir(parents=True)
        return terraform.Workspace(binary=binary, source=source, data=tmp_path / "data")

    return make


def plan_file(space: terraform.Workspace) -> terraform.Plan:
    file = space.data / "x.tfplan"
    file.touch()
    return terraform.Plan(file, terraform.planned.PlanSummary())


def test_however_often_one_cancels_one_signal_arrives_and_the_run_is_waited_for(fake: Fake, tmp_path: Path) -> None:
    # Given a terraform that takes its time to stop
    space = fake(
        f"""
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
{_READY}
while not seen:
    time.sleep(0.01)
time.sleep(1)
open({str(tmp_path / "seen")!r}, "w").write(str(len(seen)))
sys.exit(1)
"""
    )
    # When it is cancelled again and again, from several threads
    ready = threading.Event()

    def impatient() -> None:
        ready.wait(20)
        for _ in range(5):
            space.cancel.cancel()
            time.sleep(0.1)

    threads = [threading.Thread(target=impatient) for _ in range(3)]
    for thread in threads:
        thread.start()
    with pytest.raises(terraform.CancelledError):
        space.apply(plan_file(space), lambda _message: ready.set())
    for thread in threads:
        thread.join()
    # Then it got one
    assert (tmp_path / "seen").read_text() == "1"


def test_nothing_starts_after_a_cancel(fake: Fake, tmp_path: Path) -> None:
    space = fake(f"open({str(tmp_path / 'ran')!r}, 'w')")
    space.cancel.cancel()
    with pytest.raises(terraform.CancelledError):
        space.apply(plan_file(space))
    assert not (tmp_path / "ran").exists()


def test_messages_arrive_while_it_runs_and_half_lines_are_put_together(fake: Fake) -> None:
    space = fake(
        """
for part in ['{"@message": "a", ', '"type": "x"}', '\\n{"@message": "b", "type": "y"}']:
    sys.stdout.write(part)
    sys.stdout.flush()
    time.sleep(0.15)
"""
    )
    seen: list[tuple[str, float]] = []
    began = time.monotonic()
    space.apply(plan_file(space), lambda m: seen.append((m.kind, time.monotonic() - began)))
    assert [kind for kind, _ in seen] == ["x", "y"]
    assert seen[0][1] < seen[1][1] - 0.05


def test_a_stream_of_a_later_major_version_is_refused_and_the_run_stopped(fake: Fake) -> None:
    space = fake('print(\'{"@message": "v", "type": "version", "ui": "2.0"}\', flush=True)\ntime.sleep(600)')
    began = time.monotonic()
    with pytest.raises(messages.SluiceError, match=r"-json format 2\.0"):
        space.apply(plan_file(space))
    assert time.monotonic() - began < 20


def test_typed_values_go_through_a_private_file_and_text_through_the_command_line(fake: Fake, tmp_path: Path) -> None:
    space = fake(
        f"""
files = [a.partition("=")[2] for a in arguments if a.startswith("-var-file=")]
with open({str(tmp_path / "seen")!r}, "w") as out:
    out.write(" ".join(a for a in arguments if a.startswith("-var=")))
    out.write("|" + open(files[-1]).read() + "|" + oct(os.stat(files[-1]).st_mode & 0o777))
"""
    )
    found = space.plan({"size": "3", "engines": {"url": "secret"}})
    assert (tmp_path / "seen").read_text() == '-var=size=3|{"engines": {"url": "secret"}}|0o600'
    assert oct(found.file.stat().st_mode & 0o777) == "0o600"
    found.discard()
    assert not [p for p in space.data.iterdir() if p.name.startswith("plan-")]


def test_init_is_skipped_until_something_it_depends_on_changes(fake: Fake) -> None:
    space = fake("")
    code = space.source / "main.tf"
    code.write_text('module "a" {\n  source = "../../modules/a"\n  size = 1\n}\n')
    assert space.init()
    assert not space.init()
    code.write_text(code.read_text().replace("size = 1", "size = 2"))
    assert not space.init()
    code.write_text(code.read_text().replace("modules/a", "modules/b"))
    assert space.init()


def test_what_terraform_says_of_a_missing_init_is_answered_with_one(fake: Fake, tmp_path: Path) -> None:
    # Given a workspace that believes to be initialised, and a terraform that knows better the first time
    space = fake(
        f"""
mark = {str(tmp_path / "mark")!r}
if not os.path.exists(mark):
    open(mark, "w").close()
    print('{{"@message": "e", "type": "diagnostic", "diagnostic": '
          '{{"severity": "error", "summary": "Module not installed"}}}}')
    sys.exit(1)
print("{{}}")
"""
    )
    space.init()
    assert space.outputs() == {}
