"""The processes in which pipeline code runs.

A warm parent (`python -m runner.worker.child BUNDLE_DIR FD PARENT_PID`) imports one bundle version once and forks a
child for each request, so that a child starts in milliseconds and whatever its task does to itself stays inside.
It runs no pipeline code of its own beyond the import. A child runs one task at a time, and may run several of the
same bundle version, one after another.

On the socket between worker and child both sides send one JSON object a line:
worker → child: {"run": {…}} a task, {"lease": seconds} its lease was renewed
child → worker: {"pid": n} once, then {"result": …, "value": …, "error": …, "retry": …} a task
and what a task asks for meanwhile: see `runner.worker.ask`
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from runner.authoring import DAG, Context, Defer, Skip, lookup
from runner.worker.ask import Asker
from runner.worker.fence import Deadline, die_with_parent, outlive_parent


def warm_parent(bundle: Path, control: socket.socket, parent: int) -> None:
    """Import the bundle, then fork a child for each socket that arrives; report each child's end."""
    die_with_parent(parent)
    from runner.bundle import load  # here: children of `authoring` tests need no bundle code

    try:
        dags = load(bundle)
    except Exception as e:
        traceback.print_exc()
        _send(control, {"broken": f"{type(e).__name__}: {e}"})
        return
    # What is imported stays for good: out of the collector's sight its pages stay shared with the children.
    gc.collect()
    gc.freeze()
    # From here on it ends when the worker's socket closes, so that it can end first what its children have started.
    outlive_parent()
    _send(control, {"warm": os.getpid()})
    # A child's end writes to this pipe, so that one select() waits for requests and for ends.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    while True:
        watched: list[Any] = [control, wake_read]
        ready, _, _ = select.select(watched, [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _reap(control, children)
        if control in ready:
            message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            if not message:
                for pid in children:
                    _kill_group(pid)
                return
            me = os.getpid()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for fd in (wake_read, wake_write):
                    os.close(fd)
                control.close()
                os.setsid()
                die_with_parent(me)
                child(dags, socket.socket(fileno=descriptors[0]))
                os._exit(0)
            children.add(pid)
            for fd in descriptors:
                os.close(fd)


def _reap(control: socket.socket, children: set[int]) -> None:
    for pid in list(children):
        # Looked at without being reaped, the pid is still taken: the group that is killed is this child's.
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            continue
        _kill_group(pid)
        _, status = os.waitpid(pid, 0)
        children.discard(pid)
        _send(control, {"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def child(dags: dict[str, DAG], worker: socket.socket) -> None:
    """Run the tasks that the worker sends, one after another, until it closes the socket."""
    deadline = Deadline()
    requests = worker.makefile("rb")
    _send(worker, {"pid": os.getpid()})
    running = threading.Event()
    tasks: list[dict[str, Any]] = []
    arrived = threading.Semaphore(0)
    asker = Asker(worker)
    lookup.install(asker.ask)

    def listen() -> None:
        # The lease is renewed here while the main thread is busy with the task.
        for line in requests:
            message = json.loads(line)
            if "run" in message:
                tasks.append(message["run"])
                arrived.release()
            elif "answer" in message:
                asker.answered(message["answer"])
            elif running.is_set():
                deadline.arm(message["lease"])
        os.killpg(os.getpid(), signal.SIGKILL)  # the worker is gone, and so is everything that runs for it

    threading.Thread(target=listen, daemon=True).start()
    while True:
        arrived.acquire()
        request = tasks.pop(0)
        running.set()
        deadline.arm(request["lease"])
        with _output_to(request["log"]):
            answer = _run(dags, request)
        running.clear()
        deadline.disarm()
        asker.send(answer)


class Terminated(BaseException):
    """The process was told to end: what the task has opened gets the chance to be closed."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what follows is the tidying up
    raise Terminated


def _run(dags: dict[str, DAG], request: dict[str, Any]) -> dict[str, Any]:
    context = Context.from_json(request["context"])
    os.environ.update(request.get("environment", {}))
    limit(request.get("execution", {}))
    try:
        signal.signal(signal.SIGTERM, _terminate)
        dag = dags.get(context.dag_id)
        if dag is None:
            raise LookupError(f"DAG {context.dag_id!r} is not in bundle version {context.bundle_version}")
        answer = attempt(dag, context, request["inputs"], request.get("items", {}))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except Terminated:
        return {"result": "terminated"}
    answer["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return answer


def attempt(dag: DAG, context: Context, inputs: dict[str, Any], items: dict[str, Any]) -> dict[str, Any]:
    """Run one task and say how it ended, as the worker is told; its own callbacks have run then."""
    try:
        value = dag.run_task(context.task_id, context, inputs, items)
        answer: dict[str, Any] = {"result": "success"}
        if value is not None:
            answer["value"] = json.dumps(value)
            if isinstance(value, list):
                answer["length"] = len(value)
        if skip := dag.left_out(context.task_id, value):
            answer["skip"] = skip
    except Skip as e:
        answer = {"result": "skipped", "error": str(e) or None}
    except Defer as e:
        return {"result": "deferred", "error": str(e) or None, "delay": e.delay.total_seconds()}
    except (Exception, SystemExit) as e:
        traceback.print_exc()
        answer = {"result": "failed", "error": _said(e, context)}
        if not dag.may_retry(context.task_id, e):
            answer["retry"] = False
    dag.call_back(context, answer["result"], answer.get("error"), retry=answer.get("retry", True))
    return answer


def _said(error: BaseException, context: Context) -> str:
    if isinstance(error, MemoryError) and not str(error):
        return "MemoryError: it needs more memory than its limit, or than there is"
    return f"{type(error).__name__}: {error}"[:1000]


def limit(execution: dict[str, Any]) -> None:
    """Limits of the kernel for this process and, each for itself, whatever it starts (setrlimit(2)).

    memory_mb: private memory (RLIMIT_DATA), beyond what was there before the task. cpu_seconds: RLIMIT_CPU.
    """
    if memory := execution.get("memory_mb"):
        size = (int(memory) << 20) + _data_bytes()
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    if cpu := execution.get("cpu_seconds"):
        seconds = math.ceil(cpu + time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))


def _data_bytes() -> int:
    with open("/proc/self/statm") as f:  # noqa: PTH123
        return int(f.read().split()[5]) * resource.getpagesize()


@contextlib.contextmanager
def _output_to(path: str) -> Iterator[None]:
    """Everything written to stdout and stderr, by subprocesses too, goes to the attempt's log, line by line."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError):  # closed by the task
                stream.flush()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.close(null)


def _send(to: socket.socket | BinaryIO, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    if isinstance(to, socket.socket):
        to.sendall(data)
    else:
        to.write(data)


def main() -> None:
    bundle, fd, parent = sys.argv[1:]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    warm_parent(Path(bundle), socket.socket(fileno=int(fd)), int(parent))


if __name__ == "__main__":
    main()
