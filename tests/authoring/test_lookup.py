"""Connections and variables by name."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy
from hypothesis import given as any_of
from hypothesis import settings
from hypothesis import strategies as st

from runner.authoring import Connection, NotFoundError, connection, variable
from runner.authoring.lookup import given, install, providing


def test_the_provider_is_asked_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an environment that knows both, and a provider that knows one of each
    monkeypatch.setenv("SLUICE_CONN_WARE_HOUSE", "postgresql://env:secret@host:5432/db?sslmode=require")
    monkeypatch.setenv("SLUICE_CONN_ONLY_ENV", "http://env")
    monkeypatch.setenv("SLUICE_VAR_LIMIT", "7")
    asked = []

    def provider(kind: str, name: str) -> Mapping[str, Any] | None:
        asked.append((kind, name))
        known = {"ware-house": {"type": "mysql", "host": "given", "port": None, "newer": 1}, "colour": {"value": None}}
        return known.get(name)

    # Then a task gets what the provider says, else the environment, else the default
    with providing(provider):
        assert connection("ware-house") == Connection(name="ware-house", type="mysql", host="given")
        assert connection("only env").host == "env"
        assert variable("colour", "red") is None
        assert variable("limit") == "7"
        assert variable("other", 3) == 3
        with pytest.raises(NotFoundError, match=r"no variable 'other'.*runner objects apply.*SLUICE_VAR_OTHER"):
            variable("other")
    assert asked[0] == ("connection", "ware-house") and len(asked) == 6
    # and without one the environment
    assert connection("ware-house").extra == {"sslmode": "require"}
    with pytest.raises(NotFoundError, match="no connection 'gone'"):
        connection("gone")


def test_a_password_is_in_no_repr_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Connection.from_url("postgresql://ann:s3cr3t@host/db?token=s3cr3t")
    assert "s3cr3t" not in repr(found) and found.password == "s3cr3t"
    monkeypatch.setenv("SLUICE_CONN_BAD", "ann:s3cr3t@host")
    with pytest.raises(ValueError, match="connection 'bad' is no URL") as e:
        connection("bad")
    assert "s3cr3t" not in str(e.value)
    monkeypatch.setenv("SLUICE_CONN_BAD", "x://ann:s3cr3t@host:port/")
    with pytest.raises(ValueError, match="connection 'bad' is no URL") as e:
        connection("bad")
    assert "s3cr3t" not in f"{e.value} {e.value.__cause__}"


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@settings(deadline=None)
@any_of(
    login=text, password=text, schema=text, port=st.none() | st.integers(1, 65535), extra=st.dictionaries(text, text)
)
def test_a_url_says_the_same_to_sqlalchemy_and_back(
    login: str, password: str, schema: str, port: int | None, extra: dict[str, str]
) -> None:
    extra = {k: v for k, v in extra.items() if k}
    password = password if login else ""
    made = Connection(
        type="postgresql", host="db", port=port, login=login, password=password, schema=schema, extra=extra
    )
    assert Connection.from_url(made.url(driver="postgresql")) == made
    url = sqlalchemy.make_url(made.url())
    assert (url.drivername, url.host, url.port) == ("postgresql+psycopg", "db", port)
    assert (url.username or "", url.password or "", url.database or "") == (login, password, schema)


def test_a_socket_directory_and_an_ipv6_host_survive() -> None:
    socket = "postgresql://postgres@/db?host=/var/run/pg&port=5432"
    assert sqlalchemy.make_url(Connection.from_url(socket).url()).query["host"] == "/var/run/pg"
    assert Connection.from_url("http://[::1]:80/x").url() == "http://[::1]:80/x"


def test_given_takes_urls_and_connections() -> None:
    provider = given({"a": "http://h", "b": Connection(type="x")}, {"v": [1]})
    assert provider("connection", "a")["host"] == "h"  # type: ignore[index]
    assert provider("variable", "v") == {"value": [1]}
    assert provider("connection", "c") is None and provider("variable", "a") is None


def test_what_is_installed_answers_in_threads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.authoring.lookup._of_process", [])
    install(given({}, {"v": 1}))
    install(given({}, {"v": 2}))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(variable, "v").result() == 2
    with providing(given({}, {"v": 3})):
        assert variable("v") == 3
