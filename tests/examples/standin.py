"""Docker's API as far as ContainerOperator asks it; a container is a process of this machine, in place of an image."""

from __future__ import annotations

import http.server
import json
import re
import struct
import subprocess
import threading
import uuid
from typing import Any


class Docker(http.server.ThreadingHTTPServer):
    """`url` is what DOCKER_HOST may be; `made` and `removed` say which containers there were."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.made: dict[str, dict[str, Any]] = {}
        self.removed: list[str] = []
        self.url = f"tcp://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever)

    def __enter__(self) -> Docker:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Docker
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, value: Any = None, status: int = 200) -> None:
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def container(self) -> dict[str, Any]:
        found = re.search(r"/containers/([^/?]+)", self.path)
        assert found
        return self.server.made[found[1]]

    def do_GET(self) -> None:
        if self.path.endswith("/version"):
            self.answer({"ApiVersion": "1.44"})
            return
        box = self.container()
        status = box["process"].returncode if "process" in box else 0
        state = {"ExitCode": status, "Running": False, "OOMKilled": False, "Error": ""}
        self.answer({"Id": box["Id"], "State": state, "Config": {"Tty": False}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "/containers/create" in self.path:
            made = {"Id": uuid.uuid4().hex, "asked": json.loads(body), "started": threading.Event()}
            self.server.made[made["Id"]] = made
            self.answer({"Id": made["Id"], "Warnings": []}, 201)
        elif "/attach" in self.path:
            self.attach(self.container())
        elif "/start" in self.path:
            box = self.container()
            env = dict(pair.split("=", 1) for pair in box["asked"]["Env"])
            box["process"] = subprocess.Popen(
                box["asked"]["Cmd"],
                env={"PATH": "/usr/bin:/bin", **env},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            box["started"].set()
            self.answer(status=204)
        elif "/wait" in self.path:
            self.answer({"StatusCode": self.container()["process"].wait()})
        else:
            self.answer({"message": f"not here: {self.path}"}, 404)

    def do_DELETE(self) -> None:
        self.server.removed.append(self.container()["Id"])
        self.answer(status=204)

    def attach(self, box: dict[str, Any]) -> None:
        """Its output in Docker's frames, to the end of the connection."""
        self.send_response(101)
        self.send_header("Content-Type", "application/vnd.docker.multiplexed-stream")
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "tcp")
        self.end_headers()
        assert box["started"].wait(60)
        for line in box["process"].stdout:
            self.wfile.write(struct.pack(">BxxxL", 1, len(line)) + line)
        box["process"].stdout.close()
        box["process"].wait()
        self.close_connection = True
