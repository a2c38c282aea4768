"""Bundles with packages of their own, from a lock to an environment; test_live has them on a worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from runner.bundle import BundleError, fetch, interpreter, publish
from runner.bundle.environment import ensure, python_of
from runner.bundle.fetch import key_of
from runner.bundle.publish import Prepared, prepare
from runner.bundle.wheels import Manifest, manifest_of
from runner.settings import SluiceError
from runner.storage import Storage
from tests.bundle.wheelhouse import wheel

USES = """
import tinylib
from runner.authoring import dag, task

@task
def version() -> str:
    return tinylib.VERSION

@dag
def {name}():
    version()
"""

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip finds packages, instead of an index; and a cache of this test's own."""
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, lock: str, code: str = USES) -> Path:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        (directory / "pipeline.py").write_text(code.format(name=name))
        (directory / "requirements.lock").write_text(lock)
        return directory

    return make


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(f"file://{tmp_path}/artifacts")


def push(directory: Path, storage: Storage, engine: Engine) -> str:
    with engine.begin() as connection:
        return publish(directory, storage=storage, connection=connection, who="test").version


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_is_wrong_with_the_packages_is_told_with_the_line(
    write: Write, wheelhouse: Path, storage: Storage, engine: Engine
) -> None:
    wheel(wheelhouse, "tinylib", "1.0", needs=["other>=2"])
    bad = {
        "tinylib==9.9\n": r"requirements\.lock:1: pip: No matching distribution found for tinylib==9\.9",
        "\ntinylib==1.0\n": r"requirements\.lock:2: tinylib 1\.0 needs other>=2, which is not pinned here",
    }
    for lock, problem in bad.items():
        with pytest.raises(BundleError, match=problem):
            push(write("b", lock), storage, engine)
    # An unpinned line, and with it what is wrong beside it but not what cannot be imported for it
    code = "from runner.authoring import DAG\nDAG('x', schedule='61 * * * *')\n"
    directory = write("b", "tinylib\n", code)
    (directory / "uses.py").write_text("import tinylib\n")
    with pytest.raises(BundleError) as e:
        push(directory, storage, engine)
    assert [(p.file, p.line) for p in e.value.problems] == [("requirements.lock", 1), ("pipeline.py", 2)]
    # Nothing was stored or made active
    assert storage.list() == []
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM bundle")).scalar() == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_wheel_that_was_changed_is_refused_on_the_node(
    write: Write, wheelhouse: Path, storage: Storage, engine: Engine, tmp_path: Path
) -> None:
    wheel(wheelhouse, "tinylib", "1.0")
    version = push(write("b", "tinylib==1.0\n"), storage, engine)
    [stored] = storage.list("wheels")
    good = storage.get(stored.key)
    storage.put(stored.key, wheel(tmp_path / "evil", "tinylib", "1.0", command=True).read_bytes())
    with pytest.raises(SluiceError, match=r"wheel .*tinylib-1\.0.* is damaged"):
        fetch(version, storage=storage, cache=tmp_path / "node")
    # And once it is whole again, what was half made is made anew; the lock is known here, no index is asked
    storage.put(stored.key, good)
    assert Path(interpreter(fetch(version, storage=storage, cache=tmp_path / "node"))).exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_wheels_for_another_machine_travel_too_and_are_not_installed_here(
    write: Write, wheelhouse: Path, storage: Storage, engine: Engine, tmp_path: Path
) -> None:
    # Given a package that is built for two machines, this one and another
    here, there = "x86_64", "aarch64"
    if sys.platform != "linux" or subprocess.check_output(["uname", "-m"], text=True).strip() != here:
        here, there = there, here
    for machine in (here, there):
        wheel(wheelhouse, "tinylib", "1.0", tag=f"py3-none-manylinux_2_17_{machine}")
    # When it is pushed for both
    prepared: Prepared = prepare(write("b", "tinylib==1.0\n"), architectures=[here, there])
    assert sorted(w.file for w in prepared.wheels) == sorted(
        f"tinylib-1.0-py3-none-manylinux_2_17_{m}.whl" for m in (here, there)
    )
    version = prepared.archive.version
    for one in prepared.wheels:
        storage.put(one.key, prepared.get(one))
    storage.put(key_of(version), prepared.archive.data)
    # Then this machine takes its own
    directory = fetch(version, storage=storage, cache=tmp_path / "node")
    manifest = manifest_of(directory)
    assert manifest is not None and len(manifest.wheels) == 2
    code = "import tinylib; print(tinylib.VERSION)"
    assert subprocess.check_output([interpreter(directory), "-c", code], text=True) == "1.0\n"
    # And with wheels for the other one only, it says so
    only = prepare(write("c", "tinylib==1.0\n"), architectures=[there])
    storage.put(key_of(only.archive.version), only.archive.data)
    with pytest.raises(SluiceError, match="the packages of the bundle do not fit this machine"):
        fetch(only.archive.version, storage=storage, cache=tmp_path / "node")


def test_an_environment_that_is_used_by_nobody_goes(tmp_path: Path) -> None:
    def made(lock: str) -> Path:
        return ensure(Manifest(lock, ()), tmp_path / "environments", lambda w: b"", keep=1)

    first = made("1")
    code = "from runner.bundle import environment; environment.enter(); print(flush=True); input()"
    with subprocess.Popen([python_of(first), "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None and user.stdout.readline() == b"\n"
        # When others come while it is in use, it stays; the one between them, used by nobody, goes
        second = made("2")
        third = made("3")
        assert [p.exists() for p in (first, second, third)] == [True, False, True]
        user.communicate(b"\n")
    made("3")
    assert not first.exists()
