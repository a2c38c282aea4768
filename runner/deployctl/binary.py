"""The terraform binary and what its process inherits: found on PATH, or a pinned release fetched and verified."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from runner.settings import SluiceError, UsageError

MINIMUM = (1, 10)
PINNED = "1.11.4"
RELEASES = "https://releases.hashicorp.com"
# sha256 of terraform_<PINNED>_<platform>.zip, as published in terraform_1.11.4_SHA256SUMS and repeated by
# HashiCorp's own package formula. Change them together with PINNED.
CHECKSUMS = {
    "linux_amd64": "1ce994251c00281d6845f0f268637ba50c0005657eb3cf096b92f753b42ef4dc",
    "linux_arm64": "a43d1d0da9b9bab214a8305a39db0e40869572594ccf50c416a7756499143633",
    "darwin_amd64": "a56d5002b9f7647291faccc3dd1a70350e60fb61e4c45037629508b8fdc2575b",
    "darwin_arm64": "867e0808fa971217043e25b7a792b10720c79b1546f8a68479b74f138be73e18",
}

_REGISTRY = "registry.terraform.io"
_INSTALL = f"install terraform ≥ {MINIMUM[0]}.{MINIMUM[1]} and put it on PATH"
_DOWNLOAD_SECONDS = 60


def find(
    environ: Mapping[str, str] | None = None,
    *,
    releases: str = RELEASES,
    checksums: Mapping[str, str] = CHECKSUMS,
) -> Path:
    """The terraform to use: the one on PATH if it is new enough, else the pinned release from the cache.

    The pinned release is downloaded once, its sha256 checked before anything of it is run.
    Raises SluiceError with one line when neither can be had.
    """
    environ = os.environ if environ is None else environ
    on_path = shutil.which("terraform", path=environ.get("PATH"))
    why = "there is no terraform on PATH"
    if on_path:
        try:
            found = version_of(Path(on_path), environ)
        except SluiceError as e:
            why = e.message
        else:
            if found >= MINIMUM:
                return Path(on_path)
            why = f"{on_path} is terraform {_text(found)}, older than {_text(MINIMUM)}"
    try:
        return _pinned(cache_directory(environ), releases, checksums)
    except SluiceError as e:
        raise SluiceError(f"{why}, and {e.message}", e.hint or _INSTALL) from e


def version_of(binary: Path, environ: Mapping[str, str] | None = None) -> tuple[int, ...]:
    """The version a terraform binary reports. Raises SluiceError if it does not answer like one."""
    try:
        answer = subprocess.run(
            [str(binary), "version", "-json"],
            env=child_environ(os.environ if environ is None else environ),
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
        return parse_version(str(json.loads(answer)["terraform_version"]))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        raise SluiceError(f"{binary} does not answer as terraform", _INSTALL) from None


def parse_version(text: str) -> tuple[int, ...]:
    """`1.11.4` as numbers; a pre-release counts as the release before it is one. Raises ValueError."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
    if not match:
        raise ValueError(f"not a version: {text!r}")
    return tuple(int(n) for n in match.groups())


def platform_name(system: str | None = None, machine: str | None = None) -> str:
    """This machine as HashiCorp names it, e.g. `linux_amd64`. Raises SluiceError where nothing is published."""
    system = (system or platform.system()).lower()
    machine = (machine or platform.machine()).lower()
    names = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
    name = f"{system}_{names.get(machine, machine)}"
    if name not in CHECKSUMS:
        raise SluiceError(f"no terraform release is pinned for {name}", _INSTALL)
    return name


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Where downloads are kept between runs: `$XDG_CACHE_HOME/sluice`, by default `~/.cache/sluice`."""
    base = environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a relative path.
    root = Path(base) if base.startswith("/") else Path(environ.get("HOME") or Path.home()) / ".cache"
    return root / "sluice"


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment a terraform process gets.

    Providers come from `TF_CLI_CONFIG_FILE` if that file can be read, else from the directory `SLUICE_TF_MIRROR`
    names (it holds `registry.terraform.io/`), else from the registry through a shared cache folder.
    What would make a run depend on the caller's shell (`TF_CLI_ARGS`, `TF_WORKSPACE`, `TF_DATA_DIR`) is dropped.
    Raises UsageError for a mirror that is not one.
    """
    out = {
        k: v for k, v in environ.items() if not k.startswith("TF_CLI_ARGS") and k not in ("TF_WORKSPACE", "TF_DATA_DIR")
    }
    out |= {"TF_IN_AUTOMATION": "1", "TF_INPUT": "0", "CHECKPOINT_DISABLE": "1"}
    config = out.get("TF_CLI_CONFIG_FILE", "")
    if config and os.access(config, os.R_OK):
        return out
    # Terraform prints a warning into every output when the variable names a file that it cannot read.
    out.pop("TF_CLI_CONFIG_FILE", None)
    mirror = out.get("SLUICE_TF_MIRROR", "")
    if mirror:
        out["TF_CLI_CONFIG_FILE"] = str(_mirror_config(Path(mirror), cache_directory(environ)))
    elif "TF_PLUGIN_CACHE_DIR" not in out:
        plugins = cache_directory(environ) / "providers"
        plugins.mkdir(parents=True, exist_ok=True)
        out["TF_PLUGIN_CACHE_DIR"] = str(plugins)
    return out


@contextlib.contextmanager
def plugin_lock(environ: Mapping[str, str]) -> Iterator[None]:
    """Hold while `terraform init` may write the shared provider cache: it is not made for two writers at once."""
    folder = environ.get("TF_PLUGIN_CACHE_DIR", "")
    if not folder:
        yield
        return
    with file_lock(Path(folder).with_name(Path(folder).name + ".lock")):
        yield


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """An exclusive lock among threads and processes; the kernel gives it back when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _pinned(cache: Path, releases: str, checksums: Mapping[str, str]) -> Path:
    target = cache / f"terraform-{PINNED}" / "terraform"
    if target.is_file():
        return target
    name = f"terraform_{PINNED}_{platform_name()}.zip"
    url = f"{releases}/terraform/{PINNED}/{name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(cache / "terraform.lock"):
        if target.is_file():
            return target
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            archive = Path(folder) / name
            digest = _download(url, archive)
            expected = checksums[platform_name()]
            if digest != expected:
                raise SluiceError(
                    f"the download of {url} is not the pinned release: sha256 {digest}, expected {expected}",
                    f"something between here and there changes downloads; {_INSTALL}",
                )
            try:
                with zipfile.ZipFile(archive) as content:
                    unpacked = Path(content.extract("terraform", folder))
            except (zipfile.BadZipFile, KeyError) as e:
                raise SluiceError(f"{name} holds no terraform ({e})", _INSTALL) from None
            unpacked.chmod(0o755)
            unpacked.replace(target)  # atomic: nobody ever sees half a binary
    return target


def _download(url: str, target: Path) -> str:
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(url, timeout=_DOWNLOAD_SECONDS) as response,
            target.open("wb") as out,
        ):
            while block := response.read(1 << 20):
                digest.update(block)
                out.write(block)
    except (urllib.error.URLError, OSError) as e:
        reason = getattr(e, "reason", e)
        raise SluiceError(f"downloading {url} failed: {reason}", _INSTALL) from None
    return digest.hexdigest()


def _mirror_config(mirror: Path, cache: Path) -> Path:
    mirror = mirror.expanduser().resolve()
    if not (mirror / _REGISTRY).is_dir():
        raise UsageError(
            f"SLUICE_TF_MIRROR={mirror} holds no {_REGISTRY}/",
            "name the directory that `terraform providers mirror` wrote, or unset it to use the registry",
        )
    text = (
        "provider_installation {\n"
        f'  filesystem_mirror {{\n    path    = {json.dumps(str(mirror))}\n    include = ["{_REGISTRY}/*/*"]\n  }}\n'
        f'  direct {{\n    exclude = ["{_REGISTRY}/*/*"]\n  }}\n'
        "}\n"
    )
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    target = cache / f"mirror-{digest}.tfrc"
    if not target.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache, delete=False) as out:
            out.write(text)
        Path(out.name).replace(target)
    return target


def _text(version: tuple[int, ...]) -> str:
    return ".".join(str(n) for n in version)
