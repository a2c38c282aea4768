from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.objects import FileError, Secret, read
from runner.objects.file import Objects

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str) -> Path:
        path = tmp_path / "prod.yaml"
        path.write_text(textwrap.dedent(content))
        return path

    return write


def test_a_file_of_everything(write: Write) -> None:
    found = read(
        write("""\
        connections:
          warehouse:
            type: postgresql
            host: db.internal
            port: 5432
            login: etl
            password: ${secretsmanager:prod/warehouse#password}
            schema: analytics
            extra: {sslmode: require, api_key: abc123}
          lake: postgresql://reader:hunter22@lake/db
          replica: postgresql://reader:${env:REPLICA_PASSWORD}@replica/db
        pools:
          warehouse: 8
          api: {slots: 2, description: what the vendor allows}
        variables:
          customers: https://example.com/customers
          limits: {rows: 5, ratio: 0.5, on: [1, two, null, true]}
          token: !secret s3cr3t
          empty:
        """)
    )
    assert found == Objects(
        connection={
            "warehouse": {
                "type": "postgresql",
                "host": "db.internal",
                "port": 5432,
                "login": "etl",
                "password": "${secretsmanager:prod/warehouse#password}",
                "schema": "analytics",
                "extra": {"sslmode": "require", "api_key": Secret("abc123")},
            },
            "lake": {"url": Secret("postgresql://reader:hunter22@lake/db")},
            "replica": {"url": "postgresql://reader:${env:REPLICA_PASSWORD}@replica/db"},
        },
        pool={
            "warehouse": {"slots": 8, "description": ""},
            "api": {"slots": 2, "description": "what the vendor allows"},
        },
        variable={
            "customers": "https://example.com/customers",
            "limits": {"rows": 5, "ratio": 0.5, "on": [1, "two", None, True]},
            "token": Secret("s3cr3t"),
            "empty": None,
        },
    )
    assert "hunter22" not in repr(found) and "s3cr3t" not in repr(found)


def test_everything_that_is_wrong_is_said_at_once_with_its_line(write: Write) -> None:
    path = write("""\
        connections:
          a:
            typ: postgresql
            port: many
            password: 12345
          b: not-a-url
          b: x://y
          c: {type: http, port: 0}
          d: {type: http, password: "${vault:x}"}
          bad name!: {type: http}
        pools:
          p: -1
          q: {slot: 3}
          r: "8"
        variables:
          day: 2026-01-01
          nan: .nan
          odd: !python/name:os.system x
          file: ${file:relative}
          sneaky: {$secret: x}
        extra: 1
        """)
    with pytest.raises(FileError) as caught:
        read(path)
    said = caught.value.message.replace(f"{path}:", "").splitlines()
    for line, what in [
        (3, "connection 'a': no type"),
        (3, "connection 'a': unknown key 'typ'; did you mean type?"),
        (4, "connection 'a': port must be 1 to 65535, not 'many'"),
        (5, "connection 'a': password must be a text, not 12345; put it in quotes"),
        (6, "connection 'b' must be a mapping or a URL"),
        (7, "connections: 'b' is there twice"),
        (8, "connection 'c': port must be 1 to 65535, not 0"),
        (9, "connection 'd': password: ${vault:x} is no reference; write ${env|file|secretsmanager|ssm:NAME}"),
        (10, "connections: name 'bad name!' must be"),
        (12, "pool 'p': slots must be a whole number, 0 or more, not -1"),
        (13, "pool 'q': no slots"),
        (13, "pool 'q': unknown key 'slot'; did you mean slots?"),
        (14, "pool 'r': slots must be a whole number, 0 or more, not '8'"),
        (16, "variable 'day': 2026-01-01 is a date; put it in quotes"),
        (17, "variable 'nan': .nan is no number that JSON knows"),
        (18, "variable 'odd': !python/name:os.system 'x' is not understood; the only tag is !secret"),
        (19, "variable 'file': ${file:relative}: file needs a path that begins with /"),
        (20, "variable 'sneaky': the key $secret is not allowed"),
        (21, "the file: unknown key 'extra'; known: connections, pools, variables"),
    ]:
        assert any(s.startswith(f"{line}: {what}") for s in said), (line, what, said)
    assert len(said) == 19
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "prod.yaml:1: no YAML: "),
        ("connections: [1, 2]", "prod.yaml:1: connections must be a mapping"),
        ("- 1", "prod.yaml:1: the file must be a mapping"),
        ("a: \x07", "no YAML"),
    ],
)
def test_what_is_no_file_of_objects(write: Write, content: str, message: str) -> None:
    with pytest.raises(FileError, match=message):
        read(write(content))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read(tmp_path / "none.yaml")


def test_an_empty_file_defines_nothing(write: Write) -> None:
    assert read(write("")) == read(write("connections:\npools:\n")) == Objects()
