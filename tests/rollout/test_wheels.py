"""Which wheels a node needs, and that they are fetched once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.rollout import release as releases
from runner.rollout.wheels import Pin, Target, Wheels, closure, pins_of
from runner.settings import SluiceError, UsageError
from tests.rollout import tiny

X86 = Target("3.11", "linux_x86_64")
ARM = Target("3.12", "linux_aarch64")
NEEDS = ["alpha", "beta[more]; extra == 'node'", "late; python_full_version < '3.11.3' and extra == 'node'"]
NEEDS += ["never; sys_platform == 'win32'", "tests; extra == 'dev'"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `index/`, where pip finds wheels and nowhere else, and `cache/`, which tests fill together."""
    folder = tmp_path_factory.mktemp("wheels")
    (folder / "requirements.lock").write_text(tiny.index(folder / "index"))
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("PIP_")]:
            patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(folder / "index"))
        yield folder


def needed(world: Path, target: Target, cache: str = "cache") -> list[str]:
    pins = pins_of((world / "requirements.lock").read_text(), target)
    wheels = Wheels(world / cache)
    return [p.name for p in closure(NEEDS, ["node"], pins, target, lambda wanted: wheels.fetch(wanted, target))]


def test_a_node_gets_what_it_needs_and_no_more(world: Path) -> None:
    # Given a lock with a package for tests, one that only an extra needs, one for an early patch of this Python
    assert needed(world, X86) == [
        "alpha-1-py3-none-any.whl",
        "beta-1-py3-none-any.whl",
        "gamma-2-cp311-cp311-manylinux_2_17_x86_64.whl",
        "late-1-py3-none-any.whl",
    ]
    # Then another Python on another machine gets its own
    assert needed(world, ARM) == [
        "alpha-1-py3-none-any.whl",
        "beta-1-py3-none-any.whl",
        "gamma-2-cp312-cp312-manylinux_2_17_aarch64.whl",
    ]


def test_what_was_fetched_once_needs_no_index(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = needed(world, X86)
    monkeypatch.setenv("PIP_FIND_LINKS", str(world / "nowhere"))
    assert needed(world, X86) == first
    with pytest.raises(SluiceError, match=r"wheels for Python 3\.11 on linux_x86_64 cannot be fetched: .*alpha"):
        needed(world, X86, cache="empty")


def test_a_wheel_that_the_cache_holds_damaged_is_fetched_again(world: Path) -> None:
    pin = pins_of((world / "requirements.lock").read_text(), X86)["alpha"]
    wheels = Wheels(world / "cache")
    path = wheels.fetch([pin], X86)["alpha"]
    whole = path.read_bytes()
    path.write_bytes(b"half")
    assert wheels.fetch([pin], X86)["alpha"].read_bytes() == whole


def test_another_content_under_the_pinned_name_is_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content = tiny.wheel("alpha", files={"evil.py": ""})
    (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SluiceError, match="cannot be fetched"):
        needed(world, X86, cache="empty")


def test_what_the_lock_lacks_is_named(world: Path) -> None:
    pins = pins_of((world / "requirements.lock").read_text(), X86)
    del pins["gamma"]
    wheels = Wheels(world / "cache")
    with pytest.raises(SluiceError, match=r"beta needs gamma, which requirements\.lock does not have"):
        closure(NEEDS, ["node"], pins, X86, lambda wanted: wheels.fetch(wanted, X86))


def test_wheels_and_what_they_are_for_make_a_releases_identity() -> None:
    own = {"wheel/sluice.whl": b"own"}
    ids = [
        releases.describe({**own, **wheels}, "", targets)["id"]
        for wheels, targets in (
            ({}, {}),
            ({"wheels/a.whl": b"1"}, {X86: ["a.whl"]}),
            ({"wheels/a.whl": b"2"}, {X86: ["a.whl"]}),
            ({"wheels/a.whl": b"2"}, {ARM: ["a.whl"]}),
            ({"wheels/a.whl": b"2"}, {X86: ["a.whl"], ARM: ["a.whl"]}),
        )
    ]
    assert len(set(ids)) == 5


@pytest.mark.parametrize(
    ("lock", "reason"),
    [
        ("alpha==1\n", "alpha==1 is not one version with hashes"),
        (f"alpha>=1 --hash=sha256:{'0' * 64}\n", "alpha>=1 is not one version with hashes"),
        (f"alpha==1 --hash=sha256:{'0' * 64}\nalpha==2 --hash=sha256:{'1' * 64}\n", "two versions of alpha for Python"),
    ],
)
def test_a_lock_that_does_not_lock_is_refused(lock: str, reason: str) -> None:
    with pytest.raises(SluiceError, match=reason):
        pins_of(lock, X86)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (("3.10", "linux_x86_64"), "python '3.10' is not a version nodes can run"),
        (("3", "linux_x86_64"), "python '3' is not a version"),
        (("3.11", "win_amd64"), "platform 'win_amd64' is none nodes have"),
    ],
)
def test_a_target_that_no_node_is_is_refused(target: tuple[str, str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Target(*target)


def test_a_circle_of_needs_ends(tmp_path: Path) -> None:
    paths = {}
    for name, needs in (("a", ["b[x]"]), ("b", ["a", "c; extra == 'x'"]), ("c", ["B"])):
        file, content = tiny.wheel(name, needs=needs)
        paths[name] = tmp_path / file
        paths[name].write_bytes(content)
    pins = {name: Pin(name, "1", None, ("0" * 64,)) for name in "abc"}
    asked = []

    def fetch(wanted: object) -> dict[str, Path]:
        names = [pin.name for pin in wanted]  # type: ignore[attr-defined]
        asked.append(names)
        return {name: paths[name] for name in names}

    assert closure(["a"], [], pins, X86, fetch) == sorted(paths.values())
    assert asked == [["a"], ["b"], ["c"]]
