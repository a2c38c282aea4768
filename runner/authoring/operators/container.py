"""A container as a task, through the Docker API (Docker, or Podman's socket)."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runner.authoring.context import Context
from runner.authoring.errors import Skip
from runner.authoring.operators.base import Operator
from runner.authoring.operators.output import Output
from runner.authoring.operators.stopping import stoppable

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

STOP_SECONDS = 2  # between TERM and KILL of a container whose task is stopped; a worker gives the task five
_GUARD = Path(__file__).with_name("container_guard.py")


class ContainerError(RuntimeError):
    """A container could not be run, or ended with a status that means failure."""


class ContainerOperator(Operator):
    """Runs a container to its end; its output goes to the task's log as it comes.

    Any exit status but 0 is a failure, `skip_exit_code` skips the task. `command` is a list, or text that is split as
    a shell would. The container sees its context (`SLUICE_DAG_ID`, `SLUICE_LOGICAL_DATE`, …; see
    `Context.environment`) and `env`, nothing else of the node's environment. `mounts` are paths of the node to paths
    inside, `/path:ro` for read-only. `cpus` limits the processors (1.5 is one and a half), `memory` the bytes
    (a number, or text such as "512m"). `init` puts a process first that hands signals on and reaps. `pull` says when
    the image is fetched: "missing", "always" or "never". `docker_url` is where the API is, else DOCKER_HOST or the
    local socket. `return_last_line` makes the last line of its stdout the task's value.

    The container is removed when the task ends, whatever ends it; one that somebody else removes is a failure.
    Raises ContainerError.
    """

    template_fields = ("image", "command", "env", "mounts")

    def __init__(
        self,
        task_id: str,
        *,
        image: str,
        command: str | Sequence[str] | None = None,
        entrypoint: str | Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        mounts: Mapping[str, str] | None = None,
        cpus: float | None = None,
        memory: int | str | None = None,
        user: str | None = None,
        workdir: str | None = None,
        network: str | None = None,
        init: bool = False,
        pull: Literal["missing", "always", "never"] = "missing",
        docker_url: str | None = None,
        skip_exit_code: int | None = 99,
        return_last_line: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(task_id, **options)
        self.image = image
        self.command = command if command is None or isinstance(command, str) else list(command)
        self.entrypoint = entrypoint if entrypoint is None or isinstance(entrypoint, str) else list(entrypoint)
        self.env = dict(env or {})
        self.mounts = dict(mounts or {})
        self.cpus = cpus
        self.memory = memory
        self.user = user
        self.workdir = workdir
        self.network = network
        self.init = init
        self.pull = pull
        self.docker_url = docker_url
        self.skip_exit_code = skip_exit_code
        self.return_last_line = return_last_line

    def execute(self, context: Context) -> str | None:
        """Create, start, follow, judge and remove it."""
        from docker.errors import APIError, DockerException
        from requests.exceptions import RequestException

        try:
            with stoppable(), self._client() as client, self._container(client, context) as container:
                out, err = Output(), Output("stderr")
                output = client.api.attach(
                    str(container.id), stdout=True, stderr=True, stream=True, logs=True, demux=True
                )
                with contextlib.closing(output):
                    container.start()  # attached before: nothing is missed
                    for from_stdout, from_stderr in output:
                        out.add(from_stdout or b"")
                        err.add(from_stderr or b"")
                container.wait()  # at once, unless the stream of its output broke off
                self._judge(container)
                return out.last_line() if self.return_last_line else None
        except APIError as e:
            raise ContainerError(f"image {self.image}: {e.explanation or e}") from e
        except (DockerException, RequestException) as e:
            raise ContainerError(f"image {self.image}: {e}") from e

    @contextlib.contextmanager
    def _client(self) -> Iterator[DockerClient]:
        import docker

        client = docker.DockerClient(base_url=self.docker_url) if self.docker_url else docker.from_env()
        try:
            yield client
        finally:
            client.close()

    @contextlib.contextmanager
    def _container(self, client: DockerClient, context: Context) -> Iterator[Container]:
        from docker.errors import APIError, NotFound

        name = f"sluice-{uuid.uuid4().hex}"
        guard = _guard(name, self.docker_url)
        container = None
        gone = False  # for certain
        try:
            try:
                container = self._create(client, name, context)
            except APIError:  # Docker's own answer: it did not make one
                gone = True
                raise
            try:
                yield container
            except BaseException as e:
                if not isinstance(e, Exception):  # told to stop: it may clean up too
                    container.stop(timeout=STOP_SECONDS)
                raise
            finally:
                with contextlib.suppress(NotFound):
                    container.remove(force=True, v=True)
                gone = True
        except NotFound as e:
            if container is None:
                raise
            raise ContainerError(f"image {self.image}: the container was removed while it ran") from e
        finally:
            assert guard.stdin is not None
            with contextlib.suppress(OSError), guard.stdin:
                guard.stdin.write(b"gone" if gone else b"")
            if gone:
                guard.wait()

    def _create(self, client: DockerClient, name: str, context: Context) -> Container:
        from docker.errors import ImageNotFound

        options: dict[str, Any] = {
            "name": name,
            "command": self.command,
            "entrypoint": self.entrypoint,
            "environment": {**context.environment(), **{k: str(v) for k, v in self.env.items()}},
            "volumes": {host: _bind(inside) for host, inside in self.mounts.items()},
            "nano_cpus": None if self.cpus is None else int(self.cpus * 1e9),
            "mem_limit": self.memory,
            "memswap_limit": self.memory,  # no swap beside it
            "user": self.user,
            "working_dir": self.workdir,
            "network": self.network,
            "init": self.init or None,
            "labels": {
                "sluice.dag": context.dag_id,
                "sluice.run": context.run_id,
                "sluice.task": context.task_id,
                "sluice.attempt": str(context.attempt),
                "sluice.node": context.node,
            },
        }
        options = {k: v for k, v in options.items() if v is not None}
        if self.pull == "always":
            client.images.pull(self.image)
        try:
            return client.containers.create(self.image, **options)
        except ImageNotFound:
            if self.pull != "missing":
                raise
            print(f"pulling {self.image}")
            client.images.pull(self.image)
            return client.containers.create(self.image, **options)

    def _judge(self, container: Container) -> None:
        container.reload()
        state = container.attrs["State"]
        status = int(state["ExitCode"])
        if state.get("Running"):
            raise ContainerError(f"image {self.image}: the container runs on, but nothing follows it any more")
        if status == self.skip_exit_code:
            raise Skip(f"the container exited with status {status}")
        if status != 0:
            why = f", out of memory (limit {self.memory})" if state.get("OOMKilled") else ""
            said = f": {state['Error']}" if state.get("Error") else ""
            raise ContainerError(f"image {self.image}: the container exited with status {status}{why}{said}")


def _guard(name: str, docker_url: str | None) -> subprocess.Popen[bytes]:
    """A process that removes the container if this one dies without having done it, by SIGKILL for example."""
    # -I: this folder is not on its path, whose email.py would be taken for Python's own
    return subprocess.Popen(
        [sys.executable, "-I", str(_GUARD), name, docker_url or ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _bind(inside: str) -> dict[str, str]:
    path, _, mode = inside.partition(":")
    return {"bind": path, "mode": mode or "rw"}
