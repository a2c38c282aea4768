"""A source tree of a few lines, an index of a few wheels, and the lock that pins them."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "sluice"
version = "1.2.3"
requires-python = ">=3.11"
dependencies = ["alpha"]
[project.optional-dependencies]
node = ["beta[more]", "late; python_full_version < '3.11.3'", "never; sys_platform == 'win32'"]
calendars = []
dev = ["tests"]
[project.scripts]
runner = "runner:main"
[tool.hatch.build.targets.wheel]
packages = ["runner"]
"""
MAIN = "import alpha\n\ndef main():\n    print(alpha.SAYS)\n"


def wheel(
    name: str,
    version: str = "1",
    needs: Sequence[str] = (),
    files: dict[str, str] | None = None,
    tag: str = "py3-none-any",
) -> tuple[str, bytes]:
    """The name and the content of a wheel with one module of its name."""
    info = f"{name}-{version}.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: more"]
    content = {
        f"{name}.py": f"SAYS = '{name} {version}'\n",
        f"{info}/METADATA": "\n".join([*lines, *(f"Requires-Dist: {need}" for need in needs)]) + "\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{info}/RECORD": "",
        **(files or {}),
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, body in content.items():
            archive.writestr(zipfile.ZipInfo(path), body)
    return f"{name}-{version}-{tag}.whl", out.getvalue()


def index(folder: Path) -> str:
    """Wheels into a folder, where pip finds them; returns the lock file that pins them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, wheels, marker in (
        ("alpha", [wheel("alpha")], ""),
        ("beta", [wheel("beta", needs=["gamma; extra == 'more'", "delta; extra == 'less'", "alpha"])], ""),
        (
            "gamma",
            [
                wheel("gamma", "2", tag=f"cp3{minor}-cp3{minor}-manylinux_2_17_{machine}")
                for minor in (11, 12)
                for machine in ("x86_64", "aarch64")
            ],
            "",
        ),
        ("late", [wheel("late")], " ; python_full_version < '3.11.3'"),
        ("tests", [wheel("tests")], ""),
    ):
        version = "2" if name == "gamma" else "1"
        for file, content in wheels:
            (folder / file).write_bytes(content)
        hashes = " \\\n    ".join(f"--hash=sha256:{hashlib.sha256(content).hexdigest()}" for _, content in wheels)
        lines.append(f"{name}=={version}{marker} \\\n    {hashes}\n")
    return "".join(lines)


def tree(root: Path, lock: str = "") -> Path:
    """A source tree that builds."""
    for name, content in {
        "pyproject.toml": PROJECT,
        "requirements.lock": lock or "alpha==1 --hash=sha256:" + "0" * 64 + "\n",
        "runner/__init__.py": MAIN,
        "systemd/runner-agent.service": "[Unit]\n",
        "ansible/site.yml": "[]\n",
        "ansible/__pycache__/x.pyc": "no",
        "scripts/bootstrap": "#!/bin/sh\n",
        "scripts/install": (ROOT / "scripts/install").read_text(),
        "scripts/other": "not in a release",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "scripts/bootstrap").chmod(0o700)
    return root
