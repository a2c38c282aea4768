"""An AWS API on this machine, everything in memory: state is gone when it ends.

`GET /_sluice/ready` answers `200 ok` once requests are served.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

READY_PATH = "/_sluice/ready"

Environ = dict[str, Any]
App = Callable[[Environ, Any], Iterable[bytes]]


def serve(port: int, *, address: str = "127.0.0.1", log: Path | None = None, clock_rate: float = 1.0) -> None:
    """Serve until TERM. `clock_rate`: how many times faster lifecycle hooks time out."""
    # Nothing here needs an orderly end, and a drill may well hold a request open.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    os.environ["MOTO_PORT"] = str(port)
    os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"  # AWS's own are there to be attached, as on AWS

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, run_simple

    from runner.localcloud.aws import autoscaling, dms, ec2, elasticache, iam, rds, route53, s3, sqs

    for service in (dms, ec2, elasticache, iam, rds, route53, s3, sqs):
        service.install()
    autoscaling.install(clock_rate)

    app: App = one_at_a_time(not_implemented_is_final(DomainDispatcherApplication(create_backend_app)))
    if log:
        app = logged(app, log)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # keep-alive: Terraform makes hundreds of calls
    run_simple(address, port, answers_ready(app), threaded=True)


def answers_ready(app: App) -> App:
    """Let a starter see that the server is up without knowing any AWS API."""

    def wrapped(environ: Environ, start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] != READY_PATH:
            return app(environ, start_response)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]

    return wrapped


def one_at_a_time(app: App) -> App:
    """Let no two requests into moto at once: it locks nothing, and iterates over what another thread changes.

    But for SQS, where a request may wait for a message for 20 seconds.
    """
    lock = threading.Lock()

    def wrapped(environ: Environ, start_response: Any) -> Iterable[bytes]:
        if _service(environ) == "sqs":
            return app(environ, start_response)
        with lock:
            return app(environ, start_response)

    return wrapped


def not_implemented_is_final(app: App) -> App:
    """Answer what moto lacks, or fails at, with 501.

    Stock moto answers 500, which every AWS SDK takes for a passing fault and retries: Terraform hangs
    in back-off for minutes before it says what is missing.
    """

    def wrapped(environ: Environ, start_response: Any) -> Iterable[bytes]:
        try:
            return [b"".join(app(environ, start_response))]
        except Exception as e:
            if not isinstance(e, NotImplementedError):
                traceback.print_exc()
            body, content_type = _error(environ, f"{type(e).__name__}: {e}")
            headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
            start_response("501 Not Implemented", headers)
            return [body]

    return wrapped


def _error(environ: Environ, message: str) -> tuple[bytes, str]:
    """The error document of the protocol that was spoken (AWS JSON, EC2 query or plain query)."""
    if "HTTP_X_AMZ_TARGET" in environ:
        return json.dumps({"__type": "NotImplemented", "message": message}).encode(), "application/json"
    error = f"<Error><Type>Sender</Type><Code>NotImplemented</Code><Message>{escape(message)}</Message></Error>"
    if _service(environ) == "ec2":
        document = f"<Response><Errors>{error}</Errors><RequestID>0</RequestID></Response>"
    else:
        document = f"<ErrorResponse>{error}<RequestId>0</RequestId></ErrorResponse>"
    return document.encode(), "text/xml"


def logged(app: App, path: Path) -> App:
    """Append one JSON line per request: when, service, operation, status, milliseconds."""
    lock = threading.Lock()
    file = path.open("a", buffering=1)

    def wrapped(environ: Environ, start_response: Any) -> Iterable[bytes]:
        started, status = time.time(), 0
        service, operation = _service(environ), _operation(environ)

        def noting_status(line: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            nonlocal status
            status = int(line.split()[0])
            return start_response(line, headers, exc_info)

        try:
            return app(environ, noting_status)
        finally:
            line = {
                "at": round(started, 3),
                "service": service,
                "operation": operation,
                "status": status,
                "milliseconds": round((time.time() - started) * 1000, 1),
            }
            with lock:
                file.write(json.dumps(line) + "\n")

    return wrapped


def _service(environ: Environ) -> str:
    """The service the request was signed for: Credential=<key>/<date>/<region>/<service>/aws4_request."""
    _, found, credential = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")
    scope = credential.split(",")[0].split("/")
    return scope[3] if found and len(scope) > 3 else "?"


def _operation(environ: Environ) -> str:
    target = environ.get("HTTP_X_AMZ_TARGET")
    if target:
        return str(target).rpartition(".")[2]
    if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        return parse_qs(body.decode("utf-8", "replace")).get("Action", ["?"])[0]
    return f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
