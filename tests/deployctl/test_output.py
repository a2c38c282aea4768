from __future__ import annotations

import io

import pytest
from rich.console import Console

from runner.deployctl import output

NODE = "i-0d6e6b1566fd0ff63"
COLUMNS = ["node", "role", "#tasks", "?~why", "?#slots", "?age"]
ROWS = [[NODE, "worker", "3", "", "4", "2 min 5 s"], ["i-2", "scheduler", "0", "", "", "1 s"]]


def shown(rows: list[list[str]], limit: int | None) -> tuple[list[str], list[str]]:
    """The lines of the table on a terminal that wide, and the columns left out."""
    table, left_out = output.format_table(COLUMNS, rows, limit)
    console = Console(file=io.StringIO(), width=limit or 1000)
    console.print(table, soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()], left_out


def test_a_wide_terminal_shows_every_column_that_says_something() -> None:
    lines, left_out = shown(ROWS, 120)
    assert lines[0].split() == ["node", "role", "tasks", "slots", "age"]
    assert left_out == []


def test_a_narrow_terminal_leaves_out_the_last_columns_that_may_go() -> None:
    lines, left_out = shown(ROWS, 48)
    assert lines[0].split() == ["node", "role", "tasks", "slots"]
    assert left_out == ["age"]
    assert max(map(len, lines)) <= 48


def test_an_id_is_whole_however_narrow_it_gets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit in (50, 40, 12):
        monkeypatch.setattr(output, "results", Console(width=limit, soft_wrap=True))
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        output.print_table(COLUMNS, ROWS)
        out, err = capsys.readouterr()
        assert NODE in out
        assert "age" in err and "--json" in err


def test_prose_goes_over_several_lines_between_words() -> None:
    why = "roll 2 to c657a5457370, by root@vm, because it has to"
    lines, _ = shown([[NODE, "worker", "3", why, "4", "1 s"]], 66)
    assert [part for part in ("c657a5457370", "root@vm") if not any(part in line for line in lines)] == []
    assert len(lines) > 3 and max(map(len, lines)) <= 66


def test_a_pipe_gets_one_line_a_row_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["what", "~why"], [["x" * 150, "word " * 100]], title="title [not markup]")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "title [not markup]"
    assert len(lines) == 4 and "x" * 150 in lines[3] and lines[3].endswith("word")


def test_an_arn_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["arn"], [["arn:aws:secretsmanager:us-east-1:123456789012:secret:x [red]"]])
    output.note("arn:secret:x")
    out, err = capsys.readouterr()
    assert "123456789012:secret:x [red]" in out and err == "arn:secret:x\n"
