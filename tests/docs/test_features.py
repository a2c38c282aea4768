"""docs/features.md: every proof it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([A-Z]\d+) \| (.+?) \| (.*?) ?\|$")

# The names under which tests/chaos registers what `make chaos ONLY=…` runs.
SCENARIOS = {
    n for path in (ROOT / "tests/chaos").glob("*.py") for n in re.findall(r'@scenario\(\s*"([^"]+)"', path.read_text())
}


def rows(text: str) -> list[tuple[str, str]]:
    return [(m[1], m[3].strip()) for line in text.splitlines() if (m := ROW.match(line))]


def missing(proof: str) -> str | None:
    """Why a proof does not exist, None if it does."""
    name = proof.strip("`")
    if name.startswith("make "):
        _, target, *arguments = name.split()
        if not re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M):
            return f"no target {target}"
        wanted = [a.removeprefix("ONLY=") for a in arguments if a.startswith("ONLY=")]
        return next((f"no scenario {w}" for w in wanted if w not in SCENARIOS), None)
    path, _, test = name.partition("::")
    if not (ROOT / path).exists() or not path.startswith("tests/"):
        return f"no test file {path}"
    if not test:
        return None
    names = {n.name for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.FunctionDef)}
    return None if test in names else f"no test {test} in {path}"


FEATURES = rows((ROOT / "docs/features.md").read_text())


@pytest.mark.parametrize(("feature", "proofs"), FEATURES, ids=[f[0] for f in FEATURES])
def test_every_named_proof_exists(feature: str, proofs: str) -> None:
    wrong = [w for p in re.findall(r"`[^`]+`", proofs) if (w := missing(p))]
    assert not wrong, f"{feature}: {'; '.join(wrong)}"


def test_every_promise_has_its_row_once() -> None:
    ids = [f[0] for f in FEATURES]
    expected = [
        f"{c}{i}" for c, n in (("B", 12), ("S", 13), ("R", 8), ("E", 8), ("A", 12), ("X", 9)) for i in range(1, n + 1)
    ]
    assert sorted(ids) == sorted(expected)


def test_a_proof_that_does_not_exist_is_seen() -> None:
    assert missing("`make nothing-of-the-kind`")
    assert missing("`tests/docs/test_features.py::test_that_is_not_there`")
    assert missing("`make chaos ONLY=nothing-of-the-kind`")
    assert missing("`runner/settings.py`")
    assert missing("`make test`") is None
    assert missing("`make chaos ONLY=full-drain`") is None
