"""What the commands print: tables for people, JSON for programs, errors on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmos.errors import Conflict, NotConnected, NotFound
from shared.bus.port import BusUnavailable
from shared.requests.port import RequestsUnavailable
from shared.settings import SettingsError

# No markup: names, reasons and what models say may hold brackets of their own.
console = Console(markup=False, highlight=False)
errors = Console(markup=False, highlight=False, stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (SettingsError, 2),
    (NotFound, 3),
    (NotConnected, 4),
    (BusUnavailable, 4),
    (RequestsUnavailable, 4),
    (Conflict, 5),
)


def exit_code(error: Exception) -> int:
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def say_error(sentence: str) -> None:
    errors.print(Text("llmos:", "red"), sentence, soft_wrap=True)


def say(*parts: str | Text, style: str | None = None) -> None:
    """One line for a person, as long as it is: who pipes it into a program gets it whole."""
    console.print(*parts, style=style, soft_wrap=True)


def print_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def show(value: Any, as_json: bool, person: Callable[[], object]) -> None:
    """`value` as JSON, or whatever `person` prints."""
    if as_json:
        print_json(value)
    else:
        person()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """A table, or the sentence that says why there is none."""
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text("" if cell is None else str(cell)) for cell in row))
    console.print(grid if grid.row_count else empty)


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
