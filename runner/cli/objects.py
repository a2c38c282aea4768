"""`runner objects`: the connections, pools and variables of an environment, from a file."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from runner.cli.main import Json, _database, _settings, app
from runner.deployctl import output

objects = typer.Typer(no_args_is_help=True, help="Connections, pools and variables, from a file.")
app.add_typer(objects, name="objects")

ObjectsFile = Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file of this environment.")]
Prune = Annotated[bool, typer.Option("--prune", help="Remove what an earlier file brought and this one lacks.")]


@objects.command("apply")
def objects_apply(file: ObjectsFile, prune: Prune = False) -> None:
    """Make the environment have what the file says, all of it or, if anything is wrong, nothing."""
    from runner import objects as room

    wanted = room.read(file)
    with _database() as connection:
        changes = room.apply(wanted, connection, _cipher(), source=file.name, who=getpass.getuser(), prune=prune)
    for change in changes:
        print(change)
    output.note(f"{len(changes)} changed" if changes else "everything is as the file says; nothing was changed")


@objects.command("diff")
def objects_diff(file: ObjectsFile, prune: Prune = False) -> None:
    """Show what `apply` would change. Secrets are not shown."""
    from runner import objects as room

    wanted = room.read(file)
    with _database() as connection:
        changes = room.diff(wanted, connection, _cipher(), prune=prune)
    for change in changes:
        print(change)
    output.note(f"{len(changes)} would change" if changes else "everything is as the file says")


@objects.command("list")
def objects_list(as_json: Json = False) -> None:
    """Everything there is. Secrets are not shown."""
    from runner.objects.secrets import masked
    from runner.state import objects as state

    with _database() as connection:
        rows = state.all_of(connection)
    if as_json:
        output.print_json(
            [{"kind": r.kind, "name": r.name, "value": masked(r.value), "source": r.source} for r in rows]
        )
        return
    output.print_table(
        ["kind", "name", "~value", "from"],
        [(r.kind, r.name, json.dumps(masked(r.value), ensure_ascii=False), r.source or "-") for r in rows],
    )


@objects.command("key")
def objects_key() -> None:
    """Print a new key for SLUICE_SECRET_KEY."""
    from cryptography.fernet import Fernet

    print(Fernet.generate_key().decode())


@objects.command("rotate")
def objects_rotate() -> None:
    """Encrypt the stored secrets anew with the first key of SLUICE_SECRET_KEY; then the old key can go."""
    from runner import objects as room

    with _database() as connection:
        count = room.rotate(connection, _cipher())
    output.note(f"{count} encrypted anew")


def _cipher() -> Any:
    from runner.objects import Cipher

    return Cipher(_settings().secret_key)
