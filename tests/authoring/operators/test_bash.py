"""Commands: their output, their status, and that nothing of them is left, whatever ends the task."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from runner.authoring import DAG, Context, Skip
from runner.authoring.operators import BashOperator, CommandError


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_output_goes_to_the_log_and_the_last_line_is_the_value(
    context: Context, capfd: pytest.CaptureFixture[str]
) -> None:
    # Given a command that writes to both streams
    command = "echo one; echo two >&2; echo -n $SLUICE_LOGICAL_DATE $WHO ünï"
    op = BashOperator("b", command=command, env={"WHO": "{{ params.who }}"}, return_last_line=True)
    assert op.render(context).execute(context) == "2026-03-01T12:00:00+00:00 ann ünï"
    out = capfd.readouterr()
    assert (out.out.splitlines()[0], out.err) == ("one", "two\n")
    # Without a value wanted, the command writes to the log by itself
    assert BashOperator("b", command="echo ${#BASH_VERSINFO[@]}").execute(context) is None
    assert capfd.readouterr().out == "6\n"


@pytest.mark.parametrize("line", [["-c", "echo hello; exit 3"], ["-c", "false | cat; echo never"]])
def test_a_failing_command_fails_the_task(context: Context, line: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError, match=r"the command exited with status [13]: "):
        BashOperator("b", command=line[1]).execute(context)
    assert "never" not in capfd.readouterr().out
    with pytest.raises(CommandError, match="was killed by SIGKILL"):
        BashOperator("b", command="kill -9 $$").execute(context)


def test_a_status_skips(context: Context) -> None:
    with pytest.raises(Skip, match="status 99"):
        BashOperator("b", command="exit 99").execute(context)
    with pytest.raises(CommandError):
        BashOperator("b", command="exit 99", skip_exit_code=None).execute(context)
    with DAG("skips") as d:
        BashOperator("a", command="exit 4", skip_exit_code=4) >> BashOperator("b", command="exit 1")
    assert d.test() == {}


def test_what_cannot_start_is_one_error(context: Context, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        BashOperator("b", command="true", cwd=f"{tmp_path}/gone").execute(context)
    op = BashOperator("b", command="head -c 200000 /dev/zero | tr '\\0' x", return_last_line=True)
    with pytest.raises(ValueError, match="longer than 64 KiB"):
        op.execute(context)


@pytest.mark.parametrize("last_line", [False, True])
def test_what_runs_on_in_the_background_ends_with_the_command(
    context: Context, tmp_path: Path, last_line: bool
) -> None:
    # Given a command that leaves a process that holds its output open
    op = BashOperator("b", command=f"sleep 1000 & echo $! > {tmp_path}/pid; echo done", return_last_line=last_line)
    # Then the task ends, and so does that process
    assert op.execute(context) == ("done" if last_line else None)
    wait_for(lambda: gone(int((tmp_path / "pid").read_text())), "the process in the background lives on")


TASK = """
import datetime as dt, sys
from runner.authoring import Context
from runner.authoring.operators import BashOperator
command = '''
trap "echo cleaned > {dir}/cleaned; exit 1" TERM
sleep 1000 & echo $! > {dir}/sleep
echo $$ > {dir}/bash.part; mv {dir}/bash.part {dir}/bash
wait
'''
context = Context(dag_id="d", run_id="1", task_id="t", logical_date=dt.datetime.now(dt.UTC))
BashOperator("b", command=command).execute(context)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_task_that_is_ended_takes_its_command_with_it(tmp_path: Path, number: signal.Signals) -> None:
    # Given a task in a process of its own, in the middle of a command
    task = subprocess.Popen([sys.executable, "-c", TASK.format(dir=tmp_path)], start_new_session=True)
    wait_for((tmp_path / "bash").exists, "the command does not start")
    pids = [int((tmp_path / name).read_text()) for name in ("bash", "sleep")]
    assert all(os.getpgid(pid) != task.pid for pid in pids)

    # When only that process is told to stop, or killed
    task.send_signal(number)

    # Then it dies of that signal, and the whole group of the command is gone, after its own trap if there was time
    assert task.wait(60) == -number
    for pid in pids:
        wait_for(lambda pid=pid: gone(pid), "the command lives on")
    assert (tmp_path / "cleaned").exists() == (number is signal.SIGTERM)


def test_a_command_that_ignores_term_is_killed(tmp_path: Path, context: Context) -> None:
    code = TASK.replace('trap "echo cleaned > {dir}/cleaned; exit 1" TERM', 'trap "" TERM')
    task = subprocess.Popen([sys.executable, "-c", code.format(dir=tmp_path)], start_new_session=True)
    wait_for((tmp_path / "bash").exists, "the command does not start")
    task.terminate()
    assert task.wait(60) == -signal.SIGTERM
    wait_for(lambda: gone(int((tmp_path / "bash").read_text())), "the command lives on")
