"""`deployctl rollback ID`: undo one line of the history, whatever kind it is.

Each kind is undone by the command that does it forward: `dags rollback`, `roll`, `infra apply`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from runner.deployctl import client, environment, history, ledger, output
from runner.deployctl.environment import Environment
from runner.localcloud import state as localcloud
from runner.settings import RefusedError, SluiceError, UsageError
from runner.state import history as state
from runner.state.history import Change

_ROLES = {"worker": ("--workers", "--pool"), "scheduler": ("--schedulers",), "web": ("--web",)}


def rollback(
    change: str = typer.Argument(..., metavar="ID", help="As `deployctl history` shows it: code-12, roll-3, infra-…"),
    env: str = typer.Option(..., "--env", help="The environment."),
    only_plan: bool = typer.Option(False, "--plan", help="Show what would be done and touch nothing."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
) -> None:
    """Undo one change: the pipeline code before it, the release before it, or the configuration before it.

    Only the newest change of a thing can be undone: a later one stands on it.
    """
    found = re.fullmatch(r"(code|roll)-(\d+)|infra-[0-9a-f]{7}", change)
    if found is None:
        raise UsageError(f"{change!r} is no id of the history", f"`deployctl history --env {env}` shows them")
    if found[1] is None:
        code = _infra(env, change, only_plan=only_plan, yes=yes)
    else:
        with client.connect(env) as c, c.engine.connect() as connection:
            one = state.find(connection, found[1], int(found[2]))
            newer = state.later(connection, one)
        _check(one, newer)
        code = (_code if one.kind == "code" else _release)(env, one, only_plan=only_plan, yes=yes)
    if code:
        raise typer.Exit(code)


def _check(one: Change, newer: Change | None) -> None:
    """Raise RefusedError where there is nothing to undo, or something stands on it. Pure."""
    if one.state == "running":
        raise RefusedError(f"{one.id} is under way", f"`deployctl roll --abort {one.id[5:]}` stops it")
    if one.state != "succeeded":
        raise RefusedError(f"{one.id} has {one.state}, which took the fleet back already", "there is nothing to undo")
    if newer is not None:
        raise RefusedError(
            f"{one.target} was changed again since, by {newer.id} ({history.arrow(newer)}, {newer.who})",
            f"undo {newer.id} first",
        )
    if not one.before:
        raise RefusedError(f"{one.id} was the first of {one.target}", "there is nothing before it")
    if one.before == one.after:
        raise RefusedError(f"{one.id} changed nothing of {one.target}", "there is nothing to undo")


def _code(env: str, one: Change, *, only_plan: bool, yes: bool) -> int:
    output.note(f"{one.target}: {one.after} → {one.before}; runs under way keep theirs, nothing restarts")
    if only_plan:
        return 0
    if not yes and not output.confirm(f"Make {one.before} the active version of {one.target} in {env}?"):
        raise typer.Abort
    return _do("dags", "rollback", one.target, "--to", str(one.before), "--env", env)


def _release(env: str, one: Change, *, only_plan: bool, yes: bool) -> int:
    role, _, pool = one.target.partition("/")
    if role not in _ROLES:
        raise RefusedError(f"{one.id} rolled {one.target}, which cannot be rolled by hand", "")
    which, *by_pool = _ROLES[role]
    words = ["roll", which, *(w for name in by_pool for w in (name, pool)), "--release", str(one.before), "--env", env]
    return _do(*words, *(["--plan"] if only_plan else []), *(["--yes"] if yes else []))


# --- infrastructure -------------------------------------------------------------------------------------------


def _infra(env: str, entry_id: str, *, only_plan: bool, yes: bool) -> int:
    """Apply the configuration that was applied before, from the commit it was applied from."""
    known = environment.load(env)
    entry, earlier = ledger.find(known, environment.process_environ(known), entry_id)
    newest = ledger.read(known, environment.process_environ(known), 1, entry.stack)
    wanted = before(entry, earlier, newest[0] if newest else entry)
    words = ["infra", "plan" if only_plan else "apply", "--env", env, "--stack", entry.stack]
    for name, value in wanted.variables.items():
        words += ["--var", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    words += ["--yes"] if yes and not only_plan else []
    output.note(f"{entry.stack} as it was applied at {wanted.at} by {wanted.who}, from commit {wanted.commit[:12]}")
    if ledger.commit_of(known.tree) == wanted.commit:
        return _do(*words)
    with _checkout(known, wanted.commit) as folder, contextlib.chdir(folder):
        return _do(*words)


def before(entry: ledger.Entry, earlier: Sequence[ledger.Entry], newest: ledger.Entry) -> ledger.Entry:
    """The apply that made the stack what it was before this entry. Raises RefusedError where there is none. Pure."""
    if newest.id != entry.id:
        raise RefusedError(f"{entry.stack} was changed again since, by {newest.id}", f"undo {newest.id} first")
    # What failed half-way left the stack between two configurations; the one before it is the last that was whole.
    whole = next((e for e in earlier if e.status in ("applied", "destroyed")), None)
    if whole is None or whole.status == "destroyed":
        if entry.action == "destroy":
            raise RefusedError(
                f"nothing is known of {entry.stack} from before {entry.id}", "`infra apply` makes it new"
            )
        raise RefusedError(
            f"{entry.id} made {entry.stack}: undoing it is destroying it",
            f"if that is meant: `deployctl infra destroy --stack {entry.stack}`",
        )
    if not whole.clean:
        start = f"check out {whole.commit.rstrip('+')[:12]}, " if whole.commit else ""
        raise RefusedError(
            f"{whole.id} was applied from files that are in no commit",
            f"{start}bring them back by hand, then `deployctl infra apply --stack {entry.stack}`",
        )
    return whole


@contextlib.contextmanager
def _checkout(env: Environment, commit: str) -> Iterator[Path]:
    """A second working copy of the repository at this commit, for as long as it is needed."""
    by_hand = f"`git worktree add ../before {commit[:12]}`, and `deployctl infra apply` in there"
    with tempfile.TemporaryDirectory(prefix="sluice-rollback-") as folder:
        path = Path(folder) / "tree"
        repository = shlex.quote(str(env.tree))
        done = subprocess.run(
            ["git", "-C", str(env.tree), "worktree", "add", "--detach", str(path), commit],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["git failed"])[-1]
            raise SluiceError(f"commit {commit[:12]} cannot be checked out: {said}", f"in {repository}: {by_hand}")
        prefix = subprocess.run(
            ["git", "-C", str(env.tree), "rev-parse", "--show-prefix"], capture_output=True, text=True, check=True
        )
        # What is kept between runs stays where it is.
        kept = {
            "SLUICE_TF_DATA": str(env.tree.parent / ".sluice" / "terraform"),
            "SLUICE_LOCAL_DIR": str(localcloud.directory()),
        }
        added = [name for name in kept if name not in os.environ]
        os.environ.update({name: kept[name] for name in added})
        try:
            yield path / prefix.stdout.strip()
        finally:
            for name in added:
                del os.environ[name]
            subprocess.run(["git", "-C", str(env.tree), "worktree", "remove", "--force", str(path)], check=False)


def _do(*words: str) -> int:
    """Run another command of ours in this process; it says itself what goes wrong."""
    from runner.deployctl import main

    output.note(f"$ deployctl {shlex.join(words)}")
    return main.run(words)
