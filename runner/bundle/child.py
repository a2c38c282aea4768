"""The child process of `validate`: import a bundle, write what was found as JSON to a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from runner.bundle.load import inspect


def main(directory: str, answer: str) -> None:
    """`answer` gets {"problems": […], "specs": […]}; `answer`'s twin `.at` names the file being imported."""
    progress = Path(answer).with_suffix(".at")

    def at(file: str) -> None:
        progress.write_text(file)

    dags, problems = inspect(Path(directory), at)
    specs = [] if problems else [dags[name].spec().to_json() for name in sorted(dags)]
    Path(answer).write_text(json.dumps({"problems": problems, "specs": specs}))


if __name__ == "__main__":
    main(*sys.argv[1:])
