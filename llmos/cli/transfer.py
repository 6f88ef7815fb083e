"""A progress bar for bytes on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from llmos.cli.output import errors
from llmos.cli.printable import printable


@contextmanager
def transfer_bar(name: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how many bytes more have moved."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=errors, transient=True, disable=quiet or not errors.is_terminal) as bar:
        task = bar.add_task(escape(printable(name)), total=total)
        yield lambda count: bar.advance(task, count)
