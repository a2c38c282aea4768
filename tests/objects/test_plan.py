"""Plans and their application, on a real database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Engine, text

from runner.objects import Cipher, Secret, apply, diff, rotate
from runner.objects.file import Objects
from runner.settings import UsageError
from runner.state import objects

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
FIRST = Objects(
    connection={"db": {"type": "postgresql", "host": "a", "password": Secret("hunter22")}},
    pool={"p": {"slots": 4, "description": ""}},
    variable={"v": [1, 2]},
)


def applied(engine: Engine, wanted: Objects, keys: str = OLD, **options: Any) -> list[str]:
    with engine.begin() as c:
        return [str(x) for x in apply(wanted, c, Cipher(keys), source="prod.yaml", who="me", **options)]


def stored(engine: Engine) -> dict[tuple[str, str], Any]:
    with engine.begin() as c:
        return {(r.kind, r.name): r.value for r in objects.all_of(c)}


def test_apply_says_what_it_did_and_twice_is_once(engine: Engine) -> None:
    assert applied(engine, FIRST) == [
        "+ connection db  type: postgresql, host: a, password: ***",
        "+ pool p  slots: 4",
        "+ variable v  [1, 2]",
    ]
    before = stored(engine)
    assert applied(engine, FIRST) == []
    assert stored(engine) == before
    # The password is nowhere as it is
    with engine.begin() as c:
        dump = c.execute(
            text("SELECT json_agg(c)::text || (SELECT json_agg(v)::text FROM variable v) FROM connection c")
        )
        assert "hunter22" not in dump.scalar_one()


def test_changes_are_named_and_secrets_are_not_shown(engine: Engine) -> None:
    applied(engine, FIRST)
    second = Objects(
        connection={"db": {"type": "postgresql", "host": "b", "port": 1, "password": Secret("other")}},
        pool={"p": {"slots": 8, "description": ""}},
        variable={"v": Secret("now secret")},
    )
    expected = [
        "~ connection db  host: a → b, password: another secret, port: none → 1",
        "~ pool p  slots: 4 → 8",
        "~ variable v  [1, 2] → ***",
    ]
    with engine.begin() as c:
        assert [str(x) for x in diff(second, c, Cipher(OLD))] == expected
    assert stored(engine)["pool", "p"]["slots"] == 4  # looking changes nothing
    assert applied(engine, second) == expected
    assert applied(engine, second) == []


def test_prune_removes_what_a_file_brought_and_nothing_else(engine: Engine) -> None:
    # Given objects of a file, and a pool somebody made by hand
    applied(engine, FIRST)
    with engine.begin() as c:
        c.execute(text("INSERT INTO pool (name, slots) VALUES ('by_hand', 1)"))
    less = Objects(variable=FIRST.variable)
    # Without --prune nothing goes
    assert applied(engine, less) == []
    assert applied(engine, less, prune=True) == ["- connection db", "- pool p"]
    assert set(stored(engine)) == {("pool", "by_hand"), ("variable", "v")}


def test_an_object_made_by_hand_belongs_to_the_file_once_it_is_in_it(engine: Engine) -> None:
    with engine.begin() as c:
        c.execute(text("INSERT INTO pool (name, slots) VALUES ('p', 4)"))
    pool = Objects(pool=FIRST.pool)
    assert applied(engine, pool, prune=True) == ["~ pool p  from now on as the file says"]
    assert applied(engine, pool, prune=True) == []
    assert applied(engine, Objects(), prune=True) == ["- pool p"]


def test_all_or_nothing(engine: Engine) -> None:
    # Given a file with a secret, and no key: it is refused after the first object could have been written
    wanted = Objects(connection={"a": {"type": "http"}, "b": {"type": "http", "password": Secret("x")}})
    with pytest.raises(UsageError, match="SLUICE_SECRET_KEY is not set"):
        applied(engine, wanted, keys="")
    assert stored(engine) == {}


def test_two_who_apply_at_once_do_not_mix(engine: Engine) -> None:
    # Given two variables, and two files that each would change the one that the other would not
    applied(engine, Objects(variable={"a": 0, "b": 1}))
    second = threading.Thread(target=applied, args=(engine, Objects(variable={"a": 0, "b": 0})))
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    # When the second begins before the first is done
    with engine.begin() as c:
        apply(Objects(variable={"a": 1, "b": 1}), c, Cipher(""), source="prod.yaml", who="me")
        second.start()
        end = time.monotonic() + 60
        while second.is_alive() and time.monotonic() < end:
            with engine.begin() as look:
                if look.execute(waiting).scalar():
                    break
            time.sleep(0.05)
    second.join(60)
    # Then what is there is what one of them says
    assert {name: value for (_, name), value in stored(engine).items()} == {"a": 0, "b": 0}


def test_a_key_is_replaced_in_three_steps(engine: Engine) -> None:
    applied(engine, FIRST, keys=OLD)
    # The new key before the old one: everything still can be read
    with engine.begin() as c:
        assert diff(FIRST, c, Cipher(f"{NEW},{OLD}")) == []
        assert rotate(c, Cipher(f"{NEW}, {OLD}")) == 1
    # Then the old one goes
    with engine.begin() as c:
        assert diff(FIRST, c, Cipher(NEW)) == []
        assert [str(x) for x in diff(FIRST, c, Cipher(OLD))] == ["~ connection db  password: *** → ***"]
        with pytest.raises(UsageError, match="a key that is not in SLUICE_SECRET_KEY"):
            rotate(c, Cipher(OLD))
    # A secret whose key is lost can be given again
    assert len(applied(engine, FIRST, keys=OLD)) == 1
    assert applied(engine, FIRST, keys=OLD) == []


def test_a_key_that_is_none() -> None:
    with pytest.raises(UsageError, match="not a list of Fernet keys"):
        Cipher("too short")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runner(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, database_url: str) -> Run:
    from runner import cli
    from runner.deployctl.main import guarded

    monkeypatch.setenv("SLUICE_DATABASE_URL", database_url)
    monkeypatch.setenv("SLUICE_SECRET_KEY", OLD)

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = guarded(cli.app, words, "runner")
        out, err = capfd.readouterr()
        return code, out, err

    return run


def test_the_command_line(runner: Run, tmp_path: Path, database_url: str, engine: Engine) -> None:
    file = tmp_path / "dev.yaml"
    file.write_text("connections:\n  db: {type: postgresql, password: hunter22}\npools: {p: 3}\n")
    code, out, err = runner("objects", "diff", str(file))
    assert (code, out) == (0, "+ connection db  type: postgresql, password: ***\n+ pool p  slots: 3\n")
    assert "2 would change" in err
    assert stored(engine) == {}
    code, out, err = runner("objects", "apply", str(file))
    assert code == 0 and "2 changed" in err
    code, out, err = runner("objects", "apply", str(file))
    assert (code, out) == (0, "") and "nothing was changed" in err
    for words in (("objects", "list"), ("objects", "list", "--json")):
        code, out, err = runner(*words)
        assert code == 0 and "hunter22" not in out and "***" in out and "dev.yaml" in out
    file.write_text("pools: {p: 3}\n")
    assert runner("objects", "apply", str(file), "--prune")[1] == "- connection db\n"
    file.write_text("pools: {p: -3, q: x}\n")
    code, out, err = runner("objects", "apply", str(file))
    assert code == 2 and "pool 'p'" in err and "pool 'q'" in err and "nothing was changed" in err
    code, out, err = runner("objects", "key")
    assert code == 0 and Cipher(out.strip())
    assert runner("objects", "rotate")[0] == 0
    code, out, err = runner("config", "show")
    assert code == 0 and OLD not in out
