"""Check the Terraform tree: format, then validity of every stack. Touches no cloud and no state.

Providers come from where `deployctl` takes them. Exit status 0: clean; 1: not, with Terraform's own words.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner.deployctl import binary
from runner.settings import SluiceError

TREE = Path(__file__).resolve().parent


def main() -> int:
    try:
        terraform = str(binary.find())
        environ = binary.child_environ(os.environ)
    except SluiceError as e:
        print(f"error: {e.message}\nhint: {e.hint}", file=sys.stderr)
        return e.exit_code
    format_ok = run([terraform, "fmt", "-check", "-diff", "-recursive", str(TREE)], environ)
    stacks = sorted(path.parent for path in TREE.glob("stacks/*/main.tf"))
    with ThreadPoolExecutor(2) as pool:  # a validation takes most of two cores
        valid = list(pool.map(lambda stack: validate(terraform, environ, stack), stacks))
    return 0 if format_ok and all(valid) else 1


def validate(terraform: str, environ: dict[str, str], stack: Path) -> bool:
    with tempfile.TemporaryDirectory() as data:
        here = [terraform, f"-chdir={stack}"]
        environ = {**environ, "TF_DATA_DIR": data}
        with binary.plugin_lock(environ):
            ready = run([*here, "init", "-backend=false", "-input=false", "-no-color"], environ)
        return ready and run([*here, "validate", "-no-color"], environ)


def run(argv: list[str], environ: dict[str, str]) -> bool:
    """Run quietly unless it fails."""
    done = subprocess.run(argv, env=environ, capture_output=True, text=True)
    if done.returncode:
        print(" ".join(argv), done.stdout, done.stderr, sep="\n", file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
