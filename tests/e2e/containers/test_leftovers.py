"""What a killed worker's tasks left in the engine is removed by the next start of that worker, and by no other."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import docker
import pytest

from runner.worker import leftovers

pytestmark = [
    pytest.mark.podman,
    # the Docker client leaves sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def client(docker_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[docker.DockerClient]:
    monkeypatch.setenv("DOCKER_HOST", docker_url)
    client = docker.DockerClient(base_url=docker_url)
    yield client
    for container in client.containers.list(all=True):
        container.remove(force=True, v=True)
    client.close()
    gc.collect()


def test_only_containers_of_this_node_are_removed(client: docker.DockerClient, image: str) -> None:
    # Given containers that run, of two nodes of one machine, and one of somebody else's
    def run(**labels: str) -> str:
        return str(client.containers.run(image, ["sleep", "1000"], detach=True, labels=labels).id)

    mine, beside, foreign = run(**{"sluice.node": "i-1"}), run(**{"sluice.node": "i-1.r2"}), run(other="i-1")
    # When the worker of the first node starts
    thread = leftovers.remove_containers("i-1")
    assert thread is not None
    thread.join(60)
    # Then only its own is gone
    assert {c.id for c in client.containers.list(all=True)} == {beside, foreign}
    assert mine not in {beside, foreign}


def test_no_engine_and_one_that_is_silent_are_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(leftovers, "SOCKET", leftovers.Path("/nowhere"))
    assert leftovers.remove_containers("i-1") is None
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert leftovers.remove_containers("i-1") is None
