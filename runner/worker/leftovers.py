"""Containers of tasks that ended with their worker.

A container is the engine's child and not the worker's: it outlives a worker that was killed with all of its processes.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

SOCKET = Path("/var/run/docker.sock")
ENGINE_SECONDS = 30


def remove_containers(node_id: str) -> threading.Thread | None:
    """Remove what an earlier start of this node's worker has left; call it before the first task is taken.

    Found at once, so that nothing new is among it, and removed in the returned thread. An engine that does not answer
    is no reason not to work: its containers are found by the next start.
    """
    if not os.environ.get("DOCKER_HOST") and not SOCKET.exists():
        return None
    import docker  # slow, and only for nodes that have an engine
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        client = docker.from_env(timeout=ENGINE_SECONDS)
        found = client.api.containers(all=True, filters={"label": f"sluice.node={node_id}"})
    except (DockerException, RequestException) as e:
        log.warning("the container engine does not answer", action="leftovers", error=str(e))
        return None

    def remove() -> None:
        for container in found:
            try:
                client.api.remove_container(container["Id"], force=True, v=True)
                log.info("container of an ended task removed", action="leftovers", container=container["Id"][:12])
            except (DockerException, RequestException) as e:
                log.warning("container is not removed", action="leftovers", error=str(e))
        client.close()

    thread = threading.Thread(target=remove, name="leftovers", daemon=True)
    thread.start()
    return thread
