"""Nothing printed takes the terminal over, and what can be copied is never broken."""

from __future__ import annotations

import re
from io import StringIO

import orjson
import pytest
from rich.progress import Progress, TextColumn
from rich.text import Text

from llmos.cli import output
from llmos.cli.printable import Terminal, printable, printable_json

ATTACK = "\x1b[2Jname\x07\x9b1m\u202eexe\x7f"
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")
ID = "file-" + "0123456789abcdef" * 2


def terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> StringIO:
    screen = StringIO()
    console = Terminal(file=screen, force_terminal=True, color_system=None, width=width)
    monkeypatch.setattr(output, "console", console)
    return screen


def test_control_characters_are_written_out() -> None:
    assert printable(ATTACK + "\n") == "\\x1b[2Jname\\x07\\x9b1m\\u202eexe\\x7f\\n"
    assert printable("Grüße, 你好 👩‍💻\n\tx", keep="\n\t") == "Grüße, 你好 👩‍💻\n\tx"


def test_json_stays_the_same_document() -> None:
    value = {ATTACK: [ATTACK, "two\nlines"]}
    document = printable_json(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    assert not RAW.search(document)
    assert orjson.loads(document) == value


def test_whatever_is_printed_gives_the_terminal_no_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch, 80)
    output.say(ATTACK, Text(ATTACK, "red"), style="dim")
    output.table(("ID", "NAME"), [(ID, ATTACK), (ID, Text(ATTACK, "red"))], "none")
    output.console.print(ATTACK)
    assert not RAW.search(screen.getvalue())
    assert screen.getvalue().count("\\x1b[2J") == 5


def test_a_bar_gives_no_orders_either() -> None:
    screen = StringIO()
    console = Terminal(file=screen, force_terminal=True, width=200)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task("\x1b[2J", total=1)
    assert "\x1b[2J" not in screen.getvalue()
    assert "\\x1" in screen.getvalue()


def test_a_name_with_a_line_break_stays_in_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("ID", "NAME"), [("1", "one\nforged"), ("2", "two")], "none")
    output.say("job\nforged")
    assert capsys.readouterr().out.splitlines() == ["ID  NAME", "1   one\\nforged", "2   two", "job\\nforged"]


def test_what_a_model_says_keeps_its_lines_only(capsys: pytest.CaptureFixture[str]) -> None:
    output.say_text("one\n\ttwo\x1b]0;title\x07\n")
    assert capsys.readouterr().out == "one\n\ttwo\\x1b]0;title\\x07\n"


@pytest.mark.parametrize("width", [20, 40, 80])
def test_an_id_is_in_one_piece_on_any_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch, width)
    columns = ("FILE", "NAME", "SIZE", "PURPOSE", "STATUS", "UPLOADED")
    row = (ID, "a-long-name-of-a-file.jsonl", "1.5 MB", "fine-tune", "processed", "3m00s ago")
    output.table(columns, [row], "none")
    assert [line.split()[0] for line in screen.getvalue().splitlines() if not line.startswith(" ")] == ["FILE", ID]
    if width == 80:
        assert all(len(line) <= width for line in screen.getvalue().splitlines())


def test_in_a_pipe_a_row_is_a_line_however_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    reason = "because " * 50
    output.table(("JOB", "NAME", ""), [(ID, "你好", reason), ("short", "name", None)], "none")
    header, first, second = capsys.readouterr().out.splitlines()
    assert first == f"{ID}  你好  {reason}".rstrip()
    assert second == f"{'short':<{len(ID)}}  name"
    assert header.index("NAME") == len(ID) + 2


def test_an_empty_table_is_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("JOB",), [], "no jobs")
    assert capsys.readouterr().out == "no jobs\n"


def test_no_code_for_a_picture_is_taken_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    output.console.print("name:fire:1")
    assert capsys.readouterr().out == "name:fire:1\n"
