"""`deployctl release`: build what nodes run, sign and publish it; look at what is there and clear it up."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from runner.deployctl import client, output
from runner.deployctl.client import Client
from runner.deployctl.environment import NothingYetError
from runner.rollout import prune as pruning
from runner.rollout import published
from runner.rollout import release as releases
from runner.rollout.cloud import Cloud
from runner.rollout.sign import SecretKey, trusted
from runner.rollout.wheels import Target
from runner.settings import UsageError
from runner.state import queries, rollouts
from runner.state.rollouts import ReleaseView

ENV = typer.Option(..., "--env", help="The environment.")
JSON = typer.Option(False, "--json", help="Print the result as JSON.")

app = typer.Typer(no_args_is_help=True)


@app.command("build")
def build(
    env: str = typer.Option("", "--env", help="Publish it to this environment; without it, only build."),
    label: str = typer.Option("", "--label", help="A word for people; part of the release's identity."),
    root: Path = typer.Option(Path(), "--root", help="The source tree.", show_default="this directory"),
    out: Path | None = typer.Option(None, "--out", help="Where the archive goes.", show_default="<root>/dist/releases"),
    platform: str = typer.Option("linux_x86_64", "--platform", help="What nodes are: linux_x86_64 or linux_aarch64."),
    python: list[str] = typer.Option(["3.11"], "--python", help="Their Python; may be given several times."),
    extra: list[str] = typer.Option(list(releases.EXTRAS), "--extra", help="Extras of ours that they run."),
    sign: Path | None = typer.Option(None, "--sign", help="Sign it with this secret key (`keygen`, `minisign -G -W`)."),
    no_wheels: bool = typer.Option(False, "--no-wheels", help="For process nodes of a local cloud alone: our wheel."),
    as_json: bool = JSON,
) -> None:
    """Build a release from the source tree, and publish it if an environment is named.

    The same tree with the same label gives the same id and the same bytes.
    """
    key = SecretKey.read(sign) if sign else None
    targets = [] if no_wheels else [Target(version, platform) for version in python]

    def make() -> releases.BuiltRelease:
        return releases.build(root, label, out, targets=targets, extras=extra, key=key)

    built, new = _published(env, make) if env else (make(), None)
    size = built.path.stat().st_size
    if as_json:
        output.print_json(
            {"id": built.id, "label": label, "path": built.path, "size": size, "env": env or None, "new": new}
        )
        return
    wheels = sum(name.startswith("wheels/") for name in built.manifest["files"])
    holds = f"{wheels} wheels for {releases.targets_of(built.manifest)}" if wheels else "for process nodes only"
    output.note(f"release {built.id}{f' ({label})' if label else ''}, {size / 1e6:.1f} MB, {holds}: {built.path}")
    if key:
        output.note(f"signed with key {key.public.name}")
    if new is not None:
        output.note(f"published to {env}" if new else f"was published to {env} before")
    output.results.print(built.id)


def _published(env: str, make: Callable[[], releases.BuiltRelease]) -> tuple[releases.BuiltRelease, bool]:
    """Build a release and publish it; whether it is new. That of an environment's first nodes is only uploaded."""
    try:
        with client.connect(env) as c:
            built = make()
            with c.engine.begin() as connection:
                return built, published.publish(built, c.artifacts(), connection, client.who())
    except NothingYetError:
        built, storage = make(), client.artifacts(env)
        new = not storage.exists(releases.archive_key(built.id))
        published.upload(built, storage)
        output.note(f"uploaded, but not written down: {env} has no database to answer; its first scheduler does it")
        return built, new


@app.command("list")
def list_(
    env: str = ENV,
    limit: int = typer.Option(20, "--limit", min=1, help="How many, newest first."),
    as_json: bool = JSON,
) -> None:
    """The releases of an environment, newest first, and how many nodes run each."""
    with client.connect(env) as c, c.engine.connect() as connection:
        found = rollouts.releases(connection, limit)
        nodes = [n.release for n in queries.fleet(connection)]
    if as_json:
        output.print_json([{**vars(r), "nodes": nodes.count(r.id)} for r in found])
        return
    if not found:
        output.note(f"no release in {env} yet: `deployctl release build --env {env}` publishes one")
        return
    output.print_table(
        ("release", "~label", "built", "#nodes", "?by", "?commit", "?#MB"),
        (
            (
                r.id,
                r.label,
                f"{r.created_at.astimezone():%Y-%m-%d %H:%M:%S}",
                nodes.count(r.id),
                r.created_by,
                r.git_commit[:10] + ("+" if r.git_commit.endswith("+") else ""),
                f"{r.size / 1e6:.1f}",
            )
            for r in found
        ),
    )


@app.command("show")
def show(
    release: str = typer.Argument(..., help="Release id, or `newest`."), env: str = ENV, as_json: bool = JSON
) -> None:
    """What one release is: who built it from what, for which machines, what it holds, who signed for it."""
    with client.connect(env) as c:
        found, manifest, signed = _manifest(c, release)
        with c.engine.connect() as connection:
            running = [n.node_id for n in queries.fleet(connection) if n.release == found.id]
    packages = {name: sorted(versions) for name, versions in releases.packages(manifest).items()} if manifest else {}
    if as_json:
        output.print_json({**vars(found), "signed": signed, "nodes": running, "packages": packages, **manifest})
        return
    rows = [
        ("label", found.label),
        ("built", f"{found.created_at.astimezone():%Y-%m-%d %H:%M:%S} by {found.created_by}"),
        ("commit", found.git_commit),
        ("size", f"{found.size / 1e6:.1f} MB, {len(manifest.get('files', ()))} files"),
        ("built for", releases.targets_of(manifest)),
        ("signed", signed),
        ("nodes", " ".join(running) or "none runs it"),
        ("packages", ", ".join(f"{name} {' '.join(versions)}" for name, versions in packages.items())),
        ("archive", found.url),
    ]
    output.print_table((found.id, "~"), [row for row in rows if row[1]])


@app.command("diff")
def diff(
    old: str = typer.Argument(..., help="Release id."),
    new: str = typer.Argument("newest", help="Release id, or `newest`."),
    env: str = ENV,
    as_json: bool = JSON,
) -> None:
    """What differs between two releases: versions of packages, units, roles, scripts."""
    with client.connect(env) as c:
        (a, before, _), (b, after, _) = _manifest(c, old), _manifest(c, new)
    for view, manifest in ((a, before), (b, after)):
        if not manifest:
            raise UsageError(f"release {view.id} was published without a manifest", "build it again")
    rows = releases.compare(before, after)
    if as_json:
        output.print_json([{"what": w, "before": x or None, "after": y or None} for w, x, y in rows])
        return
    if not rows:
        output.note(f"{a.id} and {b.id} hold the same")
        return
    output.print_table(("what", f"~{a.id}", f"~{b.id}"), ((w, x or "-", y or "-") for w, x, y in rows))


@app.command("prune")
def prune(
    env: str = ENV,
    keep: int = typer.Option(10, "--keep", min=1, help="How many stay in any case, newest first."),
    only_plan: bool = typer.Option(False, "--plan", help="Show what would go and why the others stay; change nothing."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    as_json: bool = JSON,
) -> None:
    """Delete old releases, but none that anything runs, that a group or a roll names, or that ran before those."""
    with client.connect(env) as c:
        found, kept = _pruned(c, keep)
        gone = [r for r in found if r.id not in kept]
        freed = f"{sum(r.size for r in gone) / 1e6:.1f} MB"
        if not as_json:
            rows = ((r.id, r.label, f"{r.size / 1e6:.1f}", kept.get(r.id, "goes")) for r in found)
            output.print_table(("release", "~label", "#MB", "~why it stays"), rows)
        asked = yes or as_json or only_plan or not gone
        if not asked and not output.confirm(f"Delete {len(gone)} release(s) of {env}, {freed}?"):
            raise typer.Abort
        if gone and not only_plan:
            with c.engine.begin() as connection:
                pruning.hold(connection)
                found, kept = _pruned(c, keep)  # what was asked about may be in use by now
                gone = [r for r in gone if r.id not in kept]
                for release in gone:
                    pruning.remove(release.id, c.artifacts(), connection)
    if as_json:
        out = {"kept": kept, "removed": [r.id for r in gone], "bytes": sum(r.size for r in gone), "done": not only_plan}
        output.print_json(out)
        return
    done = "would be deleted" if only_plan else "deleted"
    output.note(f"{len(gone)} release(s) {done}, {freed} freed" if gone else "nothing to delete")


@app.command("keygen")
def keygen(
    out: Path = typer.Option(Path("sluice-release.key"), "--out", help="Where the secret key goes."),
) -> None:
    """Make a key pair: the secret one signs releases, the public one goes to the nodes. minisign can use both."""
    key, public = SecretKey.generate(), out.with_suffix(".pub")
    if public.exists():
        raise UsageError(f"{public} exists", "name another with --out")
    try:
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(key.to_text())
    except FileExistsError:
        raise UsageError(f"{out} exists", "name another with --out") from None
    except OSError as e:
        raise UsageError(f"{out} cannot be written: {e.strerror}") from None
    public.write_text(key.public.to_text())
    output.note(f"{out} signs: `deployctl release build --sign {out}`; keep it out of the repository")
    output.note(f"{public} is for the nodes: `release_keys` of the stacks workers, control and monitoring")
    output.results.print(str(key.public))


def _manifest(c: Client, release: str) -> tuple[ReleaseView, dict[str, Any], str]:
    """A release, its manifest, and who signed it."""
    with c.engine.connect() as connection:
        found = rollouts.find_release(connection, release)
    keys = trusted(c.settings.release_key)
    manifest = published.verified(c.artifacts(), found.id, keys)
    signature = "with a trusted key" if keys else ""
    if not keys and c.artifacts().exists(releases.signature_key(found.id)):
        signature = "yes; no key is configured here to verify it with (SLUICE_RELEASE_KEY)"
    return found, manifest, signature or "no"


def _pruned(c: Client, keep: int) -> tuple[list[ReleaseView], dict[str, str]]:
    """All releases, newest first, and why each of those stays that do."""
    tags = Cloud(c.settings.region).releases(c.env)
    with c.engine.connect() as connection:
        found = rollouts.releases(connection, 1_000_000)
        used, before = pruning.used(connection, tags), pruning.before(connection)
    return found, pruning.kept([r.id for r in found], keep, used, before)
