"""Run as `container_guard.py NAME URL`: removes a container if its stdin ends before it was told that there is no need.

The process that runs a container holds the other end. When that process is killed, nobody else would know.
"""

import signal
import sys
import time

TRIES = 60  # one a second: a Docker that restarts is waited for
ABSENT = 3  # tries that find nothing, until it is believed: a request to create it may be on its way


def main(name: str, url: str) -> None:
    """Wait for the end of stdin, then remove the container unless something came before it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read():
        return
    import docker
    from docker.errors import DockerException, NotFound
    from requests.exceptions import RequestException

    absent = 0
    for _ in range(TRIES):
        try:
            client = docker.DockerClient(base_url=url) if url else docker.from_env()
            client.containers.get(name).remove(force=True, v=True)
            return
        except NotFound:
            absent += 1
            if absent == ABSENT:
                return
        except (DockerException, RequestException):
            pass
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
