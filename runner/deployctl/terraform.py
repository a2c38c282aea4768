"""Terraform in one stack: python-terraform builds the command lines, this runs them and reads their `-json` stream.

Every run is a process group of its own, so that Ctrl-C on the terminal does not reach it: a cancelled run gets
exactly one SIGINT from us and is waited for, because a second one makes terraform drop the state lock on the floor
(hashicorp/terraform#31371). Its output goes to a file that is followed, not to a pipe: a run outlives the death of
its `deployctl`, finishes its change and gives the lock back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from python_terraform import IsFlagged, Terraform

from runner.deployctl import binary, planned
from runner.deployctl.messages import Diagnostic, LockedError, Message, TerraformError, failure, parse

OnMessage = Callable[[Message], None]

_FOLLOW_SECONDS = 0.05
_STALE_SECONDS = 86400
_STAMP = "sluice-init"
# terraform's own words when what `init` once did is no longer enough.
_NEEDS_INIT = re.compile(
    r"[Ii]nitialization required|terraform init|Module not installed|Inconsistent dependency lock file"
    r"|[Rr]equired plugins are not installed|Missing required provider|provider .* not available"
)


class CancelledError(Exception):
    """The run was asked to stop and did; its lock is given back."""


class Cancel:
    """One wish to stop, shared by runs that go on side by side. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may come in while its own thread holds it
        self._running: set[subprocess.Popen[bytes]] = set()
        self._wanted = False
        self._asking = False

    @property
    def wanted(self) -> bool:
        return self._wanted

    def cancel(self) -> None:
        """Send each running terraform one SIGINT, once, however often this is called; later runs do not start."""
        with self._lock:
            if self._wanted:
                return
            self._wanted = True
            for process in list(self._running):
                _interrupt(process)

    @contextlib.contextmanager
    def watch(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Make a process one of those that `cancel` stops."""
        with self._lock:
            self._running.add(process)
            if self._wanted:
                _interrupt(process)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """While a question is on the terminal no terraform runs: there Ctrl-C is an answer, and raises."""
        self._asking = True
        try:
            yield
        finally:
            self._asking = False

    @contextlib.contextmanager
    def on_signals(self, said: Callable[[bool], None]) -> Iterator[None]:
        """Let Ctrl-C, TERM and HUP cancel instead of raising; `said(first)` tells the user.

        Does nothing outside the main thread, where Python has no signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(_number: int, _frame: FrameType | None) -> None:
            if self._asking:
                raise KeyboardInterrupt
            first = not self._wanted
            self.cancel()
            said(first)

        before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class Plan:
    """A saved plan: what gets applied is this file, not a second opinion."""

    file: Path
    summary: planned.PlanSummary
    warnings: tuple[Diagnostic, ...] = ()

    def discard(self) -> None:
        """Remove the file: it holds every value, secrets too."""
        self.file.unlink(missing_ok=True)


@dataclass
class Workspace:
    """One stack in one environment: its source, and a folder of its own for all that terraform keeps between runs."""

    binary: Path
    source: Path
    data: Path
    backend: Mapping[str, str] = field(default_factory=dict)
    var_files: Sequence[Path] = ()
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    cancel: Cancel = field(default_factory=Cancel)
    # Resource types that are kept when their creation is broken off, instead of being made once more.
    keep: Collection[str] = planned.PROTECTED

    def __post_init__(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.environ = binary.child_environ(self.environ) | {"TF_DATA_DIR": str(self.data)}
        # python-terraform looks for a state file when it is made; this name keeps it from reading a real one.
        builder: Any = Terraform
        self._commands = builder(working_dir=str(self.data), state="not-read-here", terraform_bin_path=str(self.binary))
        self._sweep()

    def init(self, on_message: OnMessage | None = None, *, force: bool = False) -> bool:
        """Install providers and modules and bind the backend; False if the last init still holds."""
        stamp = self.data / _STAMP
        wanted = self._fingerprint()
        with binary.file_lock(self.data / "init.lock"):
            bound = not self.backend or (self.data / "terraform.tfstate").is_file()
            if not force and bound and stamp.is_file() and stamp.read_text() == wanted:
                return False
            stamp.unlink(missing_ok=True)
            with binary.plugin_lock(self.environ):
                self._run(
                    "init",
                    self._command(
                        "init", input=False, reconfigure=IsFlagged, json=IsFlagged, backend_config=dict(self.backend)
                    ),
                    on_message,
                )
            stamp.write_text(self._fingerprint())
        return True

    def plan(
        self,
        variables: Mapping[str, Any] | None = None,
        on_message: OnMessage | None = None,
        *,
        destroy: bool = False,
        refresh: bool = True,
        details: bool = True,
    ) -> Plan:
        """Plan and save it. A value that is text is read as on terraform's command line; others by their type.

        `details` adds the changed fields to the summary, for a second or two of another terraform.

        Raises TerraformError, LockedError, CancelledError.
        """
        options: dict[str, Any] = {
            "input": False,
            "json": IsFlagged,
            "detailed_exitcode": IsFlagged,
            "var_file": [str(p) for p in self.var_files],
        }
        if destroy:
            options["destroy"] = IsFlagged
        if not refresh:
            options["refresh"] = False
        typed = {k: v for k, v in (variables or {}).items() if not isinstance(v, str)}
        options["var"] = [f"{k}={v}" for k, v in (variables or {}).items() if isinstance(v, str)]
        handle, name = tempfile.mkstemp(dir=self.data, prefix="plan-", suffix=".tfplan")
        os.close(handle)
        file = Path(name)
        typed_file = file.with_suffix(".tfvars.json")
        try:
            if typed:
                # A file only we can read, not the command line that every user of the machine can.
                typed_file.touch(mode=0o600)
                typed_file.write_text(json.dumps(typed))
                options["var_file"].append(str(typed_file))
            run = self._initialised("plan", self._command("plan", out=str(file), **options), on_message, ok=(0, 2))
            summary = planned.PlanSummary() if run.code == 0 else planned.from_stream(run.planned)
            if details and (summary.changes or summary.replaces):
                summary = self._show(file)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        finally:
            typed_file.unlink(missing_ok=True)
        return Plan(file, summary, tuple(run.warnings))

    def apply(self, plan: Plan, on_message: OnMessage | None = None) -> None:
        """Do what the saved plan says and nothing else. Raises TerraformError, LockedError, CancelledError."""
        command = self._command("apply", str(plan.file), input=False, json=IsFlagged)
        broken_off: list[str] = []

        def watch(message: Message) -> None:
            kind = message.raw.get("hook", {}).get("resource", {}).get("resource_type")
            if message.kind == "apply_errored" and message.action == "create" and kind in self.keep:
                broken_off.append(message.address)
            if on_message:
                on_message(message)

        try:
            self._run("apply", command, watch)
        except CancelledError:
            self._untaint(broken_off)
            raise
        finally:
            plan.discard()

    def outputs(self) -> dict[str, Any]:
        """Output names with their values, sensitive ones too."""
        run = self._initialised("output", self._command("output", json=IsFlagged))
        return {name: entry["value"] for name, entry in json.loads(run.text or "{}").items()}

    def unlock(self, lock_id: str) -> None:
        """Take away a state lock that a killed run left behind."""
        self._initialised("unlock", self._command("force-unlock", lock_id, force=IsFlagged))

    def _untaint(self, addresses: Sequence[str]) -> None:
        """Let the next run go on with resources whose creation our own signal broke off.

        Only the wait was broken off: AWS goes on making the database. Terraform marks it tainted all the same, and
        would destroy it to begin again.
        """
        afresh = replace(self, cancel=Cancel())
        for address in addresses:
            with contextlib.suppress(TerraformError):  # not in the state: AWS had not begun
                afresh._run("untaint", afresh._command("untaint", address))

    def _show(self, file: Path) -> planned.PlanSummary:
        run = self._run("show", self._command("show", str(file), json=IsFlagged))
        return planned.from_show(json.loads(run.text))

    def _command(self, verb: str, *args: str, **options: Any) -> list[str]:
        return list(self._commands.generate_cmd_string(verb, *args, **options))

    def _initialised(
        self, name: str, command: Sequence[str], on_message: OnMessage | None = None, ok: Sequence[int] = (0,)
    ) -> _Run:
        """Run after a quick look at the last init, and once more after a new one if terraform asks for it."""
        fresh = self.init(on_message)
        try:
            return self._run(name, command, on_message, ok)
        except TerraformError as e:
            if fresh or isinstance(e, LockedError) or not _NEEDS_INIT.search(e.message + e.detail):
                raise
        self.init(on_message, force=True)
        return self._run(name, command, on_message, ok)

    def _run(
        self, name: str, command: Sequence[str], on_message: OnMessage | None = None, ok: Sequence[int] = (0,)
    ) -> _Run:
        if self.cancel.wanted:
            raise CancelledError
        run = _Run()
        # A name of its own while it runs: another deployctl may be at work in this folder. mkstemp makes it
        # private: outputs and plans hold secrets.
        handle, temporary = tempfile.mkstemp(dir=self.data, prefix=f"{name}-", suffix=".log")
        log = Path(temporary)
        with os.fdopen(handle, "wb") as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                command,
                cwd=self.source,
                env=dict(self.environ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            with self.cancel.watch(process):
                try:
                    for line in _follow(log, process):
                        run.take(line, on_message)
                except BaseException:
                    _interrupt(process)
                    process.wait()
                    raise
            run.code = process.wait()
            err.seek(0)
            run.stderr = err.read().decode(errors="replace")
        log = log.replace(self.data / f"{name}.log")
        if run.code in ok:
            return run
        if self.cancel.wanted:
            raise CancelledError
        raise failure(run.errors, run.text + run.stderr, run.code, log)

    def _sweep(self) -> None:
        """Remove what killed runs left behind; a day is longer than any run takes."""
        for path in [*self.data.glob("*-*.log"), *self.data.glob("plan-*.tf*")]:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _STALE_SECONDS:
                    path.unlink()

    def _fingerprint(self) -> str:
        """What `init` depends on: binary, backend, dependency lock, and each line that names a source or version."""
        digest = hashlib.sha256()
        about = self.binary.stat()
        digest.update(f"{self.binary} {about.st_size} {about.st_mtime_ns} {sorted(self.backend.items())}".encode())
        digest.update(str(self.environ.get("TF_CLI_CONFIG_FILE", "")).encode())
        lock = self.source / ".terraform.lock.hcl"
        digest.update(lock.read_bytes() if lock.is_file() else b"")
        modules = self.source.parent.parent / "modules"
        for path in [*sorted(self.source.glob("*.tf")), *sorted(modules.glob("**/*.tf"))]:
            found = re.findall(r"^\s*(?:source|version|module|backend|provider)\b.*$", path.read_text(), re.MULTILINE)
            digest.update(f"{path}\n{found}".encode())
        return digest.hexdigest()


@dataclass
class _Run:
    code: int = -1
    errors: list[Diagnostic] = field(default_factory=list)
    warnings: list[Diagnostic] = field(default_factory=list)
    planned: list[Mapping[str, Any]] = field(default_factory=list)
    text: str = ""  # what was not a UI message: the answer of `show` and `output`, or a crash
    stderr: str = ""

    def take(self, line: str, on_message: OnMessage | None) -> None:
        message = parse(line)
        if message is None:
            self.text += line
            return
        if message.diagnostic:
            (self.errors if message.diagnostic.severity == "error" else self.warnings).append(message.diagnostic)
        elif message.kind in ("planned_change", "outputs"):
            self.planned.append(message.raw)
        if on_message:
            on_message(message)


def _follow(path: Path, process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Whole lines of a growing file until the process that writes it has ended."""
    rest = b""
    with path.open("rb") as handle:
        while True:
            ended = process.poll() is not None  # before reading: what is there now is then all there will be
            block = handle.read()
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace") + "\n"
            if ended:
                if rest:
                    yield rest.decode(errors="replace")
                return
            if not block:
                time.sleep(_FOLLOW_SECONDS)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    # The whole group, as a terminal would: PATH may hold a wrapper, and provider plugins ignore the signal.
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
