from __future__ import annotations

import hashlib
import http.server
import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from runner.deployctl import binary
from runner.settings import SluiceError, UsageError

Fake = Callable[[str], Path]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Put a `terraform` that reports some version into a folder of its own and return the folder."""

    def make(version: str) -> Path:
        folder = tmp_path / f"bin-{version}"
        folder.mkdir()
        (folder / "terraform").write_text(f'#!/bin/sh\necho \'{{"terraform_version": "{version}"}}\'\n')
        (folder / "terraform").chmod(0o755)
        return folder

    return make


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A release server with the pinned archive, and the archive's sha256."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("terraform", "#!/bin/sh\necho pinned\n")
    name = f"terraform_{binary.PINNED}_{binary.platform_name()}.zip"
    target = tmp_path / "www" / "terraform" / binary.PINNED / name
    target.parent.mkdir(parents=True)
    target.write_bytes(body.getvalue())

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www")))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", hashlib.sha256(body.getvalue()).hexdigest()
    server.shutdown()
    thread.join()
    server.server_close()


def environ(tmp_path: Path, path: Path | str = "") -> dict[str, str]:
    return {"PATH": f"{path}", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}


def test_the_one_on_path_is_used_if_it_is_new_enough(tmp_path: Path, fake: Fake) -> None:
    folder = fake("1.10.0")
    assert binary.find(environ(tmp_path, folder), releases="http://127.0.0.1:1") == folder / "terraform"


@pytest.mark.parametrize("on_path", ["", "1.9.8", "0.12.31"])
def test_else_the_pinned_release_is_fetched_once_and_kept(
    tmp_path: Path, fake: Fake, releases: tuple[str, str], on_path: str
) -> None:
    url, digest = releases
    env = environ(tmp_path, fake(on_path) if on_path else tmp_path)
    found = binary.find(env, releases=url, checksums={binary.platform_name(): digest})
    assert found == tmp_path / "cache" / "sluice" / f"terraform-{binary.PINNED}" / "terraform"
    assert os.access(found, os.X_OK)
    # The second time nothing is asked for: there is nobody to answer.
    assert binary.find(env, releases="http://127.0.0.1:1") == found


def test_a_download_with_another_checksum_is_never_kept(tmp_path: Path, releases: tuple[str, str]) -> None:
    env = environ(tmp_path, tmp_path)
    with pytest.raises(SluiceError, match="is not the pinned release: sha256"):
        binary.find(env, releases=releases[0])  # against the real checksums
    assert not list((tmp_path / "cache").rglob("terraform"))


def test_neither_on_path_nor_to_be_had_is_one_line_with_what_to_do(tmp_path: Path, fake: Fake) -> None:
    with pytest.raises(SluiceError) as e:
        binary.find(environ(tmp_path, fake("1.5.7")), releases="http://127.0.0.1:1")
    assert "is terraform 1.5.7, older than 1.10, and downloading http://127.0.0.1:1/" in e.value.message
    assert "\n" not in e.value.message
    assert e.value.hint == "install terraform ≥ 1.10 and put it on PATH"


def test_every_pinned_platform_has_a_checksum() -> None:
    assert set(binary.CHECKSUMS) == {f"{s}_{m}" for s in ("linux", "darwin") for m in ("amd64", "arm64")}
    assert all(len(bytes.fromhex(c)) == 32 for c in binary.CHECKSUMS.values())
    assert binary.platform_name("Darwin", "arm64") == "darwin_arm64"
    with pytest.raises(SluiceError, match="sunos_sparc"):
        binary.platform_name("SunOS", "sparc")


def test_a_config_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    config = tmp_path / "rc"
    config.touch()
    env = environ(tmp_path) | {"TF_CLI_CONFIG_FILE": str(config), "SLUICE_TF_MIRROR": "/nowhere"}
    assert binary.child_environ(env)["TF_CLI_CONFIG_FILE"] == str(config)


def test_a_config_file_that_is_missing_is_taken_away(tmp_path: Path) -> None:
    env = environ(tmp_path) | {"TF_CLI_CONFIG_FILE": "/nowhere"}
    child = binary.child_environ(env)
    assert "TF_CLI_CONFIG_FILE" not in child
    assert Path(child["TF_PLUGIN_CACHE_DIR"]).is_dir()


def test_a_mirror_becomes_a_config_file_that_excludes_the_registry(tmp_path: Path) -> None:
    (tmp_path / "mirror" / "registry.terraform.io").mkdir(parents=True)
    env = environ(tmp_path) | {"SLUICE_TF_MIRROR": str(tmp_path / "mirror")}
    text = Path(binary.child_environ(env)["TF_CLI_CONFIG_FILE"]).read_text()
    assert f'path    = "{tmp_path / "mirror"}"' in text
    assert 'exclude = ["registry.terraform.io/*/*"]' in text


def test_a_mirror_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no registry\.terraform\.io/"):
        binary.child_environ(environ(tmp_path) | {"SLUICE_TF_MIRROR": str(tmp_path)})


def test_the_shells_own_terraform_settings_do_not_leak_in(tmp_path: Path) -> None:
    noise = {"TF_CLI_ARGS": "-x", "TF_CLI_ARGS_plan": "-y", "TF_WORKSPACE": "w", "TF_DATA_DIR": "d", "KEEP": "1"}
    child = binary.child_environ(environ(tmp_path) | noise)
    assert child["KEEP"] == "1"
    assert not {"TF_CLI_ARGS", "TF_CLI_ARGS_plan", "TF_WORKSPACE", "TF_DATA_DIR"} & set(child)
