"""Check the Terraform tree: format, validity of every stack, and checkov. Touches no cloud and no state.

Providers come from where `deployctl` takes them. checkov pins libraries that are older than ours, so it gets an
environment of its own, made once in the cache folder. Exit status 0: clean; 1: not, with each tool's own words.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner.deployctl import binary
from runner.settings import SluiceError

TREE = Path(__file__).resolve().parent
CHECKOV = "3.3.30"


def main() -> int:
    try:
        terraform = str(binary.find())
        environ = binary.child_environ(os.environ)
        python = checkov(environ)
    except SluiceError as e:
        print(f"error: {e.message}\nhint: {e.hint}", file=sys.stderr)
        return e.exit_code
    format_ok = run([terraform, "fmt", "-check", "-diff", "-recursive", str(TREE)], environ)
    with ThreadPoolExecutor(2) as pool:
        policies = pool.submit(check_policies, python, environ)
        valid = validate_all(terraform, environ)
    return 0 if format_ok and valid and policies.result() else 1


def validate_all(terraform: str, environ: dict[str, str]) -> bool:
    """Every stack, in a copy of the tree.

    Each start of the provider costs seconds of a core. So all stacks are modules of one configuration, with values that
    are not known yet; a stack with an `import`, which no module may have, is validated by itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(shutil.copytree(TREE, Path(folder) / "terraform", ignore=shutil.ignore_patterns(".terraform")))
        stacks = {path.parent.name: path.parent for path in sorted(tree.glob("stacks/*/main.tf"))}
        alone = [path for path in stacks.values() if re.search(r"^import ", (path / "main.tf").read_text(), re.M)]
        together = tree / "all"
        together.mkdir()
        modules = {
            name: {"source": f"../stacks/{name}"} | dict.fromkeys(required(path), "${terraform_data.any.output}")
            for name, path in stacks.items()
            if path not in alone
        }
        root = {"resource": {"terraform_data": {"any": {}}}, "module": modules}
        (together / "main.tf.json").write_text(json.dumps(root))
        return all([validate(terraform, environ, path) for path in (together, *alone)])


def required(stack: Path) -> list[str]:
    """The variables of a stack that have no default."""
    found = re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', (stack / "variables.tf").read_text(), re.M | re.S)
    return [name for name, body in found if not re.search(r"^  default\s", body, re.M)]


def validate(terraform: str, environ: dict[str, str], folder: Path) -> bool:
    here = [terraform, f"-chdir={folder}"]
    environ = {**environ, "TF_DATA_DIR": str(folder / "data")}
    with binary.plugin_lock(environ):
        ready = run([*here, "init", "-backend=false", "-input=false", "-no-color"], environ)
    return ready and run([*here, "validate", "-no-color"], environ)


def check_policies(python: Path, environ: dict[str, str]) -> bool:
    """checkov over everything. What it may not say is in `checkov:skip` comments, each with its reason."""
    options = ["--framework", "terraform", "--quiet", "--compact", "--skip-download"]
    # Not from here: a folder of the tree must not be taken for one of its modules, nor a user's own settings count.
    return run([str(python), "-I", "-m", "checkov.main", "--directory", str(TREE), *options], environ)


def checkov(environ: dict[str, str]) -> Path:
    """The interpreter of checkov's own environment. Raises SluiceError where it cannot be installed."""
    home = binary.cache_directory(environ) / f"checkov-{CHECKOV}"
    python, ready = home / "bin" / "python", home / "ready"
    with binary.file_lock(home.with_name(f"{home.name}.lock")):
        if not ready.exists():
            shutil.rmtree(home, ignore_errors=True)
            uv = shutil.which("uv")
            new = [uv, "venv", "-q", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
            pip = (
                [uv, "pip", "install", "-q", "--python", str(python)]
                if uv
                else [str(python), "-m", "pip", "install", "-q"]
            )
            if not (run([*new, str(home)], environ) and run([*pip, f"checkov=={CHECKOV}"], environ)):
                raise SluiceError(
                    f"checkov {CHECKOV} cannot be installed", "see above; it comes from the package index"
                )
            ready.touch()
    return python


def run(argv: list[str], environ: dict[str, str]) -> bool:
    """Run quietly unless it fails."""
    done = subprocess.run(argv, env=environ, capture_output=True, text=True)
    if done.returncode:
        print(" ".join(argv), done.stdout, done.stderr, sep="\n", file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
