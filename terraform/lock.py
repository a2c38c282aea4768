"""Write the providers' checksums into every stack's `.terraform.lock.hcl`, for each platform Sluice is driven from.

All stacks ask for the same provider, so there is one lock, copied. Takes the packages from the registry; with
`SLUICE_TF_MIRROR` from that directory, which must have them for every platform.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from runner.deployctl import binary
from runner.settings import SluiceError

TREE = Path(__file__).resolve().parent
PLATFORMS = ("linux_amd64", "linux_arm64", "darwin_arm64")
LOCK = ".terraform.lock.hcl"


def main() -> int:
    try:
        terraform, environ = str(binary.find()), binary.child_environ(os.environ)
    except SluiceError as e:
        print(f"error: {e.message}\nhint: {e.hint}", file=sys.stderr)
        return e.exit_code
    stacks = sorted(path.parent for path in TREE.glob("stacks/*/versions.tf"))
    mirror = [f"-fs-mirror={m}"] if (m := os.environ.get("SLUICE_TF_MIRROR")) else []
    with tempfile.TemporaryDirectory() as folder:
        # What a module asks for is what a stack asks for, without the backend.
        shutil.copy(TREE / "modules" / "network" / "versions.tf", folder)
        if (stacks[0] / LOCK).exists():
            shutil.copy(stacks[0] / LOCK, folder)
        argv = [terraform, f"-chdir={folder}", "providers", "lock", "-no-color", *mirror]
        done = subprocess.run([*argv, *(f"-platform={p}" for p in PLATFORMS)], env=environ)
        if done.returncode:
            return 1
        for stack in stacks:
            shutil.copy(Path(folder) / LOCK, stack / LOCK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
