"""Imports point down only: the floors of the house, and what each room may know of the others."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "runner"

# From the top. A room may import rooms of lower floors, and itself.
FLOORS = [
    {"cli", "deployctl", "web"},
    {"scheduler", "worker", "agent", "localcloud"},
    {"rollout", "objects"},
    {"bundle", "telemetry"},
    {"state"},
    {"authoring"},
    {"storage"},
    {"settings"},
]
# Pipelines are users of the product: they import what an author may import.
EXAMPLES_MAY = {"authoring", "storage", "examples"}
# Composition roots put rooms of their own floor together.
SIDEWAYS = {("cli", "web"), ("cli", "deployctl"), ("cli", "localcloud")}
# An operator's machine reaches a fleet through a small client, never through its insides.
NEVER = {("deployctl", "worker"), ("deployctl", "scheduler"), ("authoring", "settings")}


def floor_of(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def allowed(room: str, imported: str) -> bool:
    if room == imported:
        return True
    if (room, imported) in NEVER:
        return False
    if room == "examples":
        return imported in EXAMPLES_MAY
    return (room, imported) in SIDEWAYS or floor_of(imported) > floor_of(room)


def imports(path: Path) -> set[tuple[str, int]]:
    """(room, line) of every import of ours, wherever in the file it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module] if node.module != "runner" else [f"runner.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found |= {(n.split(".")[1], node.lineno) for n in names if n.startswith("runner.")}
    return found


def modules() -> list[Path]:
    return sorted(p for p in ROOT.rglob("*.py") if "__pycache__" not in p.parts)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    relative = path.relative_to(ROOT)
    room = relative.parts[0].removesuffix(".py")
    if room == "__init__":
        assert not imports(path)
        return
    wrong = [f"{relative}:{line} imports {other}" for other, line in imports(path) if not allowed(room, other)]
    assert not wrong, "\n".join(wrong)


def test_every_room_says_its_purpose() -> None:
    for folder in {p.parent for p in modules()}:
        if (folder / "__init__.py").exists() and folder.parent in (ROOT, ROOT.parent):
            doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
            assert doc, f"{folder} does not say what it is for"


def test_the_test_sees_a_wrong_import() -> None:
    # Given the rule, a task's code that reached for the scheduler would be refused
    assert not allowed("state", "scheduler")
    assert not allowed("deployctl", "worker")
    assert not allowed("authoring", "settings")
    assert not allowed("storage", "authoring")
    assert allowed("worker", "state")
