"""What the commands print: tables for people, JSON for programs, errors on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
import typer
from rich.cells import cell_len, set_cell_size
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from llmos.calls import Json
from llmos.cli.printable import LAYOUT, Terminal, printable, printable_json
from llmos.embedded.errors import AlreadyUp
from llmos.errors import APIError, NoAddress, NoKey, NotConnected
from shared.bus.port import BusUnavailable
from shared.requests.port import RequestsUnavailable
from shared.settings import SettingsError

console = Terminal()
errors = Terminal(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

WRONG_USE = 2
STATUS_CODES = {400: WRONG_USE, 404: 3, 409: 5, 413: WRONG_USE, 415: WRONG_USE, 422: WRONG_USE}
"""The exit code for what the API answers; 1 for any other error of it."""
EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (SettingsError, WRONG_USE),
    (NoAddress, WRONG_USE),
    (NoKey, WRONG_USE),
    (NotConnected, 4),
    (BusUnavailable, 4),
    (RequestsUnavailable, 4),
    (AlreadyUp, 5),
)
MIN_CELL = 6
"""Letters that every other column has beside the ids, however narrow the terminal is."""


def exit_code(error: Exception) -> int:
    if isinstance(error, APIError):
        return STATUS_CODES.get(error.status, 1)
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def say_error(sentence: str) -> None:
    errors.print(Text("llmos:", "red"), printable(sentence, LAYOUT), soft_wrap=True)


def say(*parts: str | Text, style: str | None = None) -> None:
    """One line for a person, as long as it is: who pipes it into a program gets it whole."""
    console.print(*(_one_line(part) for part in parts), style=style, soft_wrap=True)


def say_text(text: str) -> None:
    """What a job or a model says, as it comes, with its own lines."""
    sys.stdout.write(printable(text, LAYOUT))
    sys.stdout.flush()


def print_json(value: Any) -> None:
    sys.stdout.write(printable_json(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()) + "\n")


def listing(items: Sequence[Any], has_more: bool = False) -> Json:
    """A list as the API gives it: every `--json` of a list has this shape."""
    return {"object": "list", "data": list(items), "has_more": has_more}


def more(items: Sequence[Json], has_more: bool) -> None:
    """How to go on with a list, where it goes on."""
    if has_more:
        say(f"more: --after {items[-1]['id']}", style="dim")


def show(value: Any, as_json: bool, person: Callable[[], object]) -> None:
    """`value` as JSON, or whatever `person` prints."""
    if as_json:
        print_json(value)
    else:
        person()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """A table, or the sentence that says why there is none. The first column is what can be copied: it is never
    broken. In a pipe a row is a line, as long as it is."""
    cells = [[_one_line("" if cell is None else cell) for cell in row] for row in rows]
    if not cells:
        say(empty)
    elif console.is_terminal:
        _print_grid(columns, cells)
    else:
        _print_lines(columns, cells)


def _print_grid(columns: Sequence[str], cells: Sequence[Sequence[Text]]) -> None:
    id_width = max(cell.cell_len for cell in (Text(columns[0]), *(row[0] for row in cells)))
    grid = Table(box=None, header_style="bold", pad_edge=False)
    grid.add_column(columns[0], no_wrap=True, min_width=id_width)
    for column in columns[1:]:
        grid.add_column(column, overflow="fold")
    for row in cells:
        grid.add_row(*row)
    width = max(console.width, id_width + (MIN_CELL + 1) * (len(columns) - 1))
    for line in console.render_lines(grid, console.options.update_width(width), pad=False):
        console.print(Segments([*line, Segment.line()]), soft_wrap=True)


def _print_lines(columns: Sequence[str], cells: Sequence[Sequence[Text]]) -> None:
    lines = [list(columns), *([cell.plain for cell in row] for row in cells)]
    widths = [max(cell_len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        console.out("  ".join(map(set_cell_size, line, widths)).rstrip())


def _one_line(cell: object) -> Text:
    """A cell or a word without line breaks of its own, in its style."""
    style = cell.style if isinstance(cell, Text) else ""
    return Text(printable(cell.plain if isinstance(cell, Text) else str(cell)), style)


STATUS_COLOURS = {
    "succeeded": "green",
    "ready": "green",
    "running": "cyan",
    "failed": "red",
    "cancelled": "yellow",
    "degraded": "yellow",
    "silent": "red",
    "queued": "dim",
}


def coloured(status: str) -> Text:
    return Text(status, STATUS_COLOURS.get(status, ""))


def size(count: int) -> str:
    """Bytes for people: 1.5 GB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def ago(moment: str | float | None) -> str:
    """How long ago, for people. Takes ISO 8601 or seconds since 1970."""
    if moment is None:
        return ""
    at = datetime.fromtimestamp(moment, UTC) if isinstance(moment, int | float) else datetime.fromisoformat(moment)
    return f"{duration((datetime.now(UTC) - at).total_seconds())} ago"


def duration(seconds: float) -> str:
    """90 → 1m30s."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600}h"
