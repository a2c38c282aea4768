"""Containers as tasks, on Podman's Docker-compatible socket."""

import datetime as dt
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from runner.authoring import DAG, Context, Skip
from runner.authoring.operators import ContainerError, ContainerOperator

pytestmark = [
    pytest.mark.podman,
    # the Docker client leaves sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def client(docker_url: str) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=docker_url)
    yield client
    # Whatever a test does, the operator has removed its containers
    assert client.containers.list(all=True, sparse=True) == []
    client.close()
    gc.collect()


@pytest.fixture
def context() -> Context:
    return Context(dag_id="d", run_id="7", task_id="t", logical_date=dt.datetime(2026, 3, 1, tzinfo=dt.UTC))


@pytest.fixture
def run(client: docker.DockerClient, docker_url: str, image: str, context: Context) -> Callable[..., Any]:
    def run(script: str, **options: Any) -> Any:
        command = ["sh", "-c", script]
        op = ContainerOperator("t", **{"image": image, "command": command, "docker_url": docker_url, **options})
        return op.execute(context)

    return run


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_container_runs_with_its_environment_and_mounts(
    run: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_NODE", "s3cr3t")
    (tmp_path / "in").write_text("from the node\n")
    script = """cat /data/in; echo to stderr >&2; echo out > /data/out
    echo no > /fixed/out || echo read only; echo ${SECRET_OF_THE_NODE-unset}; cd /; echo $SLUICE_LOGICAL_DATE $WHO"""
    value = run(
        script, env={"WHO": "ünï"}, mounts={str(tmp_path): "/data", f"{tmp_path}/": "/fixed:ro"}, return_last_line=True
    )
    said = capsys.readouterr()
    assert value == "2026-03-01T00:00:00+00:00 ünï"
    assert said.out.splitlines() == ["from the node", "read only", "unset", value]
    assert said.err.splitlines()[0] == "to stderr"
    assert (tmp_path / "out").read_text() == "out\n"


def test_output_comes_while_it_runs(run: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Given a container that says something and waits for a file
    thread = threading.Thread(
        target=run, args=("echo first; while ! cat /data/go 2>/dev/null; do sleep 0.1; done",),
        kwargs={"mounts": {str(tmp_path): "/data"}},
    )  # fmt: skip
    thread.start()
    said = ""

    def hears() -> bool:
        nonlocal said
        said += capfd.readouterr().out
        return "first" in said

    try:
        wait_for(hears, "the output does not come")
    finally:
        (tmp_path / "go").write_text("went\n")
        thread.join()
    assert "went" in capfd.readouterr().out


def test_its_status_decides(run: Callable[..., Any]) -> None:
    with pytest.raises(ContainerError, match=r"localhost/small:1: the container exited with status 3$"):
        run("exit 3")
    with pytest.raises(Skip):
        run("exit 99")
    with pytest.raises(ContainerError, match="status 99"):
        run("exit 99", skip_exit_code=None)


def test_what_cannot_be_run_is_one_line(run: Callable[..., Any], context: Context) -> None:
    with pytest.raises(ContainerError, match=r"image localhost/none:1: .*"):
        run("true", image="localhost/none:1", pull="never")
    with pytest.raises(ContainerError, match=r"no-such-program|not found|no such file"):
        run("", command=["no-such-program"])
    with pytest.raises(ContainerError, match="Error while fetching server API version"):
        ContainerOperator("t", image="x", docker_url="unix:///nowhere/s").execute(context)


def test_limits_hold(run: Callable[..., Any], client: docker.DockerClient, docker_url: str, image: str) -> None:
    # Given a container that takes more than it may
    with pytest.raises(ContainerError, match=r"status 137.*|out of memory"):
        run("head -c 500000000 /dev/zero | tail -c 400000000", memory="32m")
    # and one whose limits are read while it runs
    with task(docker_url, image, "sleep 1000", cpus=0.5, memory=64 << 20) as process:
        wait_for(lambda: client.containers.list(sparse=True), "it does not start")
        limits = client.containers.list()[0].attrs["HostConfig"]
        process.terminate()
        process.wait(60)
    assert limits["Memory"] == 64 << 20
    assert limits["NanoCpus"] == 500_000_000 or limits["CpuQuota"] / limits["CpuPeriod"] == 0.5


class task:
    """A task in a process of its own that runs a container."""

    def __init__(self, docker_url: str, image: str, script: str, **options: Any) -> None:
        given = {"image": image, "command": ["sh", "-c", script], "docker_url": docker_url, **options}
        code = f"""
import datetime as dt, json
from runner.authoring import Context
from runner.authoring.operators import ContainerOperator
c = Context(dag_id="d", run_id="1", task_id="t", logical_date=dt.datetime.now(dt.UTC))
ContainerOperator("t", **json.loads({json.dumps(given)!r})).execute(c)
"""
        self.process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_task_that_is_ended_takes_its_container_with_it(
    client: docker.DockerClient, docker_url: str, image: str, tmp_path: Path, number: signal.Signals
) -> None:
    # Given a task in the middle of a container that cleans up when it is told to stop
    script = "trap 'echo cleaned > /data/cleaned; exit 0' TERM; echo > /data/up; while true; do sleep 0.1; done"
    with task(docker_url, image, script, mounts={str(tmp_path): "/data"}) as process:
        wait_for((tmp_path / "up").exists, "the container does not start")
        # When it is told to stop, or its whole group is killed
        began = time.monotonic()
        os.killpg(process.pid, number)
        # Then it dies of that
        assert process.wait(60) == -number
        if number is signal.SIGTERM:
            print(f"stopped in {time.monotonic() - began:.1f} s")
    # and the container is removed, and has cleaned up if there was time
    wait_for(lambda: not client.containers.list(all=True, sparse=True), "the container lives on")
    assert (tmp_path / "cleaned").exists() == (number is signal.SIGTERM)


def test_a_container_removed_behind_its_back_is_a_failure(client: docker.DockerClient, run: Callable[..., Any]) -> None:
    def remove() -> None:
        wait_for(lambda: client.containers.list(sparse=True), "it does not start")
        client.containers.list()[0].remove(force=True)

    thread = threading.Thread(target=remove)
    thread.start()
    with pytest.raises(ContainerError, match=r"removed while it ran|status 137"):
        run("sleep 1000")
    thread.join()


def test_as_a_task_of_a_dag(client: docker.DockerClient, docker_url: str, image: str) -> None:
    with DAG("containers") as d:
        first = ContainerOperator(
            "first", image=image, command=["sh", "-c", "echo {{ params.n }}"], docker_url=docker_url, cpus=1,
            return_last_line=True,
        )  # fmt: skip
        ContainerOperator(
            "second", image=image, command=["sh", "-c", "echo got $N"], env={"N": first}, docker_url=docker_url,
            return_last_line=True,
        )  # fmt: skip
    assert d.test(params={"n": 5}) == {"first": "5", "second": "got 5"}


def test_the_example_in_the_docs_runs(
    client: docker.DockerClient, docker_url: str, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs/operators.md").read_text()
    code = page.partition("## Containers")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.setenv("DOCKER_HOST", docker_url)
    with DAG("page") as d:
        exec(code, {"ContainerOperator": ContainerOperator, "dt": dt})
    assert d.test() == {"count": None}
