from __future__ import annotations

from pathlib import Path

import pytest

from runner.bundle.problem import BundleError
from runner.bundle.requirements import Pin, missing, parse, read


def test_pins_are_read_as_pip_writes_them() -> None:
    # Given what `pip freeze`, `pip-compile` and `uv pip compile` write
    text = """
# by uv
--index-url https://pypi.example/simple
Six==1.16.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via dateutil
zope.interface[test]==5.0 ; python_version >= "3" --hash=sha256:cc  # comment
pywin32==300 ; sys_platform == "win32"  --hash=sha256:dd
local==1.0+cu118 --hash=sha256:ee
"""
    # Then they are pins with their lines; what is not for this machine is left out
    assert parse("f", text) == (
        [
            Pin("six", "1.16.0", frozenset(), 4),
            Pin("zope-interface", "5.0", frozenset({"test"}), 8),
            Pin("local", "1.0+cu118", frozenset(), 10),
        ],
        [],
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("six", "six is not pinned to one version, write six==VERSION"),
        ("six>=1", "six is not pinned"),
        ("six==1.*", "six is not pinned"),
        ("six==1,<2", "six is not pinned"),
        ("six @ https://example.org/six.whl", "six is not pinned"),
        ("git+https://example.org/six", "is no requirement, write NAME==VERSION"),
        ("./six.whl", "is no requirement"),
        ("-e .", "-e is not possible in a bundle"),
        ("-r other.txt", "-r is not possible in a bundle"),
        ("--constraint=c.txt", "--constraint=c.txt is not possible"),
    ],
)
def test_what_is_no_pin_is_told_with_its_line(line: str, problem: str) -> None:
    _, problems = parse("requirements.txt", f"ok==1\n\n{line}\n")
    assert [str(p).startswith("requirements.txt:3: ") for p in problems] == [True]
    assert problem in problems[0].what


def test_hashes_are_for_all_or_for_none() -> None:
    _, problems = parse("f", "a==1 --hash=sha256:aa\nb==2\n")
    assert [str(p) for p in problems] == ["f:2: b has no --hash and others have one: all or none"]


def test_a_lock_must_name_all_that_its_packages_need() -> None:
    pins, _ = parse("f", "app[fast]==1\nlib==2\n")
    needs = {"app": ["lib>=3", "gone>1", "speed; extra == 'fast'", "slow; extra == 'slow'", "w; sys_platform=='win32'"]}
    assert sorted(str(p) for p in missing("f", pins, needs)) == [
        "f:1: app 1 needs gone>1, which is not pinned here",
        "f:1: app 1 needs speed, which is not pinned here",
        "f:2: app 1 needs lib>=3, not 2",
    ]


def test_the_lock_is_what_counts_where_both_files_are(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    (tmp_path / "requirements.txt").write_text("six\nattrs>1\n")
    with pytest.raises(BundleError) as e:
        read(tmp_path)
    assert [p.line for p in e.value.problems] == [1, 2]
    (tmp_path / "requirements.lock").write_text("six==1.16.0\n")
    lock = read(tmp_path)
    assert lock is not None and lock.path.name == "requirements.lock" and lock.pins[0].version == "1.16.0"
    (tmp_path / "requirements.lock").write_text("# nothing yet\n")
    assert read(tmp_path) is None
