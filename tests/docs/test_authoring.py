"""docs/authoring.md: every block is a bundle that is valid and runs; every link leads somewhere."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.authoring import DAG
from runner.bundle import load
from runner.bundle.load import _forget

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "authoring.md").read_text()
BLOCKS = {title: code for title, code in re.findall(r"^## (.+?)$(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.M | re.S)}
# Of each block what its DAG returns, as the page says
EXPECTED: dict[str, tuple[str, dict[str, Any]]] = {
    "DAGs and tasks": ("rates", {"extract": [3, 5, 8], "load": 16}),
    "Options of a task": ("limits", {"heavy": None, "lighter": None}),
    "Values": ("files", {"count": 3}),
    "As many as there are": ("mapped", {"size": [10, 12, 14], "add": 36}),
    "Groups, branches, trigger rules": ("flow", {"choose": "small", "small": None, "report": "done"}),
    "Setup and teardown": ("clusters", {"work": "worked on c-1", "remove_cluster": None}),
    "Params": ("greeting", {"greet": "hello world"}),
    "Callbacks": ("told", {"fragile": 1}),
    "Operators and sensors": ("own", {"take": "hello 2026-03-01: 1 files"}),
    "Testing": ("tested", {}),
}


def read(code: str, directory: Path) -> dict[str, DAG]:
    (directory / "page.py").write_text(code)
    try:
        return load(directory)
    finally:
        _forget()


def test_every_block_is_looked_at() -> None:
    assert set(BLOCKS) == set(EXPECTED) and len(BLOCKS) == PAGE.count("```python")


@pytest.mark.parametrize("title", [t for t in EXPECTED if t != "Testing"])
def test_a_block_does_what_the_page_says(title: str, tmp_path: Path) -> None:
    dag_id, expected = EXPECTED[title]
    made = read(BLOCKS[title], tmp_path)[dag_id]
    made.spec()
    found = made.test(dt.datetime(2026, 3, 1, tzinfo=dt.UTC), storage_url=f"file://{tmp_path}/storage")
    assert {task: found[task] for task in expected} == expected
    assert dag_id != "flow" or "large" not in found  # the branch that was not chosen


def test_the_test_of_the_page_passes() -> None:
    names: dict[str, Callable[[], None]] = {}
    exec(compile(BLOCKS["Testing"], "docs/authoring.md, Testing", "exec"), names)
    names["test_where"]()


def test_the_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert len(links) > 8 and [link for link in links if not (DOCS / link).exists()] == []
