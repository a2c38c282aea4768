"""What is wrong with a bundle, by file and line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from runner.settings import SluiceError


class Problem(NamedTuple):
    """Something wrong in a bundle's file (relative to the bundle), `line` 0 where there is none."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}" if self.line else f"{self.file}: {self.what}"


class BundleError(SluiceError):
    """A bundle that cannot be used; `problems` are all that were found."""

    def __init__(self, directory: Path | str, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(
            f"bundle {Path(directory).name}: {problems[0]}{more}", "nothing was changed; fix it and push again"
        )
