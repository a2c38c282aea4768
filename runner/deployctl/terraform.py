"""Terraform in one stack: python-terraform builds the command lines, `run` runs them and reads their `-json` stream."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from python_terraform import IsFlagged, Terraform

from runner.deployctl import binary, planned, run, statefile
from runner.deployctl.messages import Diagnostic, LockedError, Message, TerraformError, failure
from runner.deployctl.run import Cancel as Cancel
from runner.deployctl.run import CancelledError as CancelledError
from runner.deployctl.run import OnMessage as OnMessage
from runner.deployctl.run import Run

_STALE_SECONDS = 86400
_STAMP = "sluice-init"
_NOT_SAVED = re.compile(r"(save|persist)(ing)? state", re.IGNORECASE)
# terraform's own words when what `init` once did is no longer enough.
_NEEDS_INIT = re.compile(
    r"[Ii]nitialization required|terraform init|Module not installed|Inconsistent dependency lock file"
    r"|[Rr]equired plugins are not installed|Missing required provider|provider .* not available"
)


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
    wait_seconds: float = 0.0  # how long to wait for the state lock

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
        imports: Mapping[str, str] | None = None,
        targets: Sequence[str] = (),
    ) -> Plan:
        """Plan and save it. A value that is text is read as on terraform's command line; others by their type.

        `details` adds the changed fields to the summary, for a second or two of another terraform. `imports` are
        resources that exist already (address to the provider's import id) and are taken into the state. `targets`
        leave everything else, but for what they stand on, alone.

        Raises TerraformError, LockedError, CancelledError.
        """
        options: dict[str, Any] = {"detailed_exitcode": IsFlagged}
        if destroy:
            options["destroy"] = IsFlagged
        if not refresh:
            options["refresh"] = False
        if targets:
            options["target"] = list(targets)
        file, done = self._plan(variables, on_message, options, imports)
        try:
            summary = planned.PlanSummary() if done.code == 0 else planned.from_stream(done.planned)
            if details and (summary.changes or summary.replaces):
                summary = planned.from_show(self.show(file))
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        return Plan(file, summary, tuple(done.warnings))

    def drift(
        self, variables: Mapping[str, Any] | None = None, on_message: OnMessage | None = None
    ) -> tuple[planned.Change, ...]:
        """What is not any more as the state says, whoever changed it. Changes nothing, nor the state."""
        file, _ = self._plan(variables, on_message, {})
        try:
            return planned.drift(self.show(file))
        finally:
            file.unlink(missing_ok=True)

    def _plan(
        self,
        variables: Mapping[str, Any] | None,
        on_message: OnMessage | None,
        options: Mapping[str, Any],
        imports: Mapping[str, str] | None = None,
    ) -> tuple[Path, Run]:
        """Run `plan` with the variables; the file it saved. A saved plan is private: it holds every value."""
        typed = {k: v for k, v in (variables or {}).items() if not isinstance(v, str)}
        var_files = [str(p) for p in self.var_files]
        handle, name = tempfile.mkstemp(dir=self.data, prefix="plan-", suffix=".tfplan")
        os.close(handle)
        file = Path(name)
        typed_file = file.with_suffix(".tfvars.json")
        try:
            if typed:
                # A file only we can read, not the command line that every user of the machine can.
                typed_file.touch(mode=0o600)
                typed_file.write_text(json.dumps(typed))
                var_files.append(str(typed_file))
            command = self._command(
                "plan",
                out=str(file),
                input=False,
                json=IsFlagged,
                var_file=var_files,
                var=[f"{k}={v}" for k, v in (variables or {}).items() if isinstance(v, str)],
                **self._lock_timeout(),
                **options,
            )
            with self._source_with(imports) as source:
                return file, self._initialised("plan", command, on_message, ok=(0, 2), source=source)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        finally:
            typed_file.unlink(missing_ok=True)

    def apply(self, plan: Plan, on_message: OnMessage | None = None) -> None:
        """Do what the saved plan says and nothing else.

        Raises StalePlanError if the state has moved on since, TerraformError, LockedError, CancelledError.
        """
        command = self._command("apply", str(plan.file), input=False, json=IsFlagged, **self._lock_timeout())
        before = self.abandoned_applies()
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
        self.forget(before)

    def abandoned_applies(self) -> list[Path]:
        """Logs of applies that were killed, oldest first: what they made in their last seconds may be in no state."""
        found = [p for p in self.data.glob("apply-*.log") if run.abandoned(p)]
        return sorted(found, key=lambda p: p.stat().st_mtime_ns)

    def forget(self, logs: Sequence[Path]) -> None:
        """Remove logs of killed applies: the state has all of what they made."""
        for log in logs:
            log.unlink(missing_ok=True)

    def resources(self) -> list[statefile.Resource]:
        """What the state holds now."""
        done = self._initialised("state", self._command("state", "pull"))
        return statefile.resources(json.loads(done.text or "{}"))

    def remove_from_state(self, addresses: Sequence[str]) -> None:
        """Let go of resources without touching them."""
        self._initialised("state", self._command("state", "rm", *addresses))

    def outputs(self) -> dict[str, Any]:
        """Output names with their values, sensitive ones too."""
        done = self._initialised("output", self._command("output", json=IsFlagged))
        return {name: entry["value"] for name, entry in json.loads(done.text or "{}").items()}

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

    def show(self, file: Path) -> dict[str, Any]:
        """The whole document of a saved plan; it holds secrets."""
        return dict(json.loads(self._run("show", self._command("show", str(file), json=IsFlagged)).text))

    def _command(self, verb: str, *args: str, **options: Any) -> list[str]:
        return list(self._commands.generate_cmd_string(verb, *args, **options))

    def _lock_timeout(self) -> dict[str, str]:
        return {"lock_timeout": f"{round(self.wait_seconds)}s"} if self.wait_seconds else {}

    @contextlib.contextmanager
    def _source_with(self, imports: Mapping[str, str] | None) -> Iterator[Path]:
        """The stack's code, with import blocks if any: beside links to the code, which itself is left as it is."""
        if not imports:
            yield self.source
            return
        with tempfile.TemporaryDirectory(dir=self.data, prefix="import-") as folder:
            stack = Path(folder) / "stacks" / self.source.name
            stack.mkdir(parents=True)
            for path in self.source.iterdir():
                (stack / path.name).symlink_to(path)
            (Path(folder) / "modules").symlink_to(self.source.parent.parent / "modules")
            blocks = [
                f"import {{\n  to = {address}\n  id = {json.dumps(id).replace('${', '$${')}\n}}\n"
                for address, id in imports.items()
            ]
            (stack / "sluice-imports.tf").write_text("".join(blocks))
            yield stack

    def _initialised(
        self,
        name: str,
        command: Sequence[str],
        on_message: OnMessage | None = None,
        ok: Sequence[int] = (0,),
        source: Path | None = None,
    ) -> Run:
        """Run after a quick look at the last init, and once more after a new one if terraform asks for it."""
        fresh = self.init(on_message)
        try:
            return self._run(name, command, on_message, ok, source)
        except TerraformError as e:
            if fresh or isinstance(e, LockedError) or not _NEEDS_INIT.search(e.message + e.detail):
                raise
        self.init(on_message, force=True)
        return self._run(name, command, on_message, ok, source)

    def _run(
        self,
        name: str,
        command: Sequence[str],
        on_message: OnMessage | None = None,
        ok: Sequence[int] = (0,),
        source: Path | None = None,
    ) -> Run:
        done = run.start(
            command,
            cwd=source or self.source,
            environ=self.environ,
            log_folder=self.data,
            name=name,
            cancel=self.cancel,
            on_message=on_message,
        )
        lost = any(_NOT_SAVED.search(f"{e.summary} {e.detail}") for e in done.errors)
        if not (lost or done.code < 0):  # else the log is all there is to say what was made
            done.log = done.log.replace(self.data / f"{name}.log")
        if done.code in ok:
            return done
        if self.cancel.wanted:
            raise CancelledError
        raise failure(done.errors, done.text + done.stderr, done.code, done.log)

    def _sweep(self) -> None:
        """Remove what killed runs left behind, but for what an apply made; a day is longer than any run takes."""
        for path in [*self.data.glob("*-*.log"), *self.data.glob("plan-*.tf*"), *self.data.glob("import-*/")]:
            if path.name.startswith("apply-"):
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _STALE_SECONDS:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

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
