"""`scripts/bench` on the smallest case: what it prints, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def bench(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "scripts" / "bench", *argv], capture_output=True, text=True, check=False, timeout=60)


def left_behind() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("sluice-bench-*"))


def test_a_case_prints_one_json_line_and_leaves_nothing() -> None:
    # Given what other measurements may have lying about
    before = left_behind()
    # When the shortest case is measured once
    done = bench("-n", "1", "chain4")
    # Then stdout is its line alone
    assert done.returncode == 0, done.stderr
    (line,) = [json.loads(text) for text in done.stdout.splitlines()]
    assert list(line) == ["case", "unit", "median", "min", "max", "n", "load"]
    assert (line["case"], line["unit"], line["n"]) == ("chain4", "s", 1)
    assert 0 < line["min"] == line["median"] == line["max"] < 10
    assert "fsync on" in done.stderr
    assert left_behind() <= before


def test_an_unknown_case_is_refused_in_one_line() -> None:
    done = bench("chain4", "chain5")
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: no case 'chain5'; there are chain4, chain20")
