"""A shop that runs, and the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.deployctl import main

from .machines import Shop


@pytest.fixture
def shop(tmp_path: Path, broker_url: str) -> Iterator[Shop]:
    shop = Shop(tmp_path, broker_url)
    try:
        shop.up()
        yield shop
    finally:
        shop.close()


@pytest.fixture
def deployctl(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main.run([str(w) for w in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run
