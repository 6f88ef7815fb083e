"""Where a download goes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from llmos.cli.output import say, show, size
from llmos.cli.printable import printable

Output = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="PATH", help="A file, a folder, or - for stdout (default: its own name)."),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite the file if it is there.")]


def target(output: str | None, own_name: str, force: bool) -> Path | BinaryIO:
    """The file to write, or stdout. Raises BadParameter for a folder that is not there, and a file that is.

    `own_name` comes from the server: only its last part is used, and no control character of it.
    """
    if output == "-":
        return sys.stdout.buffer
    path = Path(output or ".").expanduser()
    if path.is_dir() or (output or "").endswith("/"):
        path /= _harmless(own_name)
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}", param_hint="--output")
    if path.is_file() and not force:
        raise typer.BadParameter(f"{path} is there already: --force overwrites it", param_hint="--output")
    return path


def show_written(to: Path | BinaryIO, size_bytes: int, as_json: bool) -> None:
    """Where it lies now; nothing on a stdout that it fills itself."""
    if isinstance(to, Path):
        show({"path": str(to), "size_bytes": size_bytes}, as_json, lambda: say(f"{to} ({size(size_bytes)})"))


def _harmless(own_name: str) -> str:
    name = printable(Path(own_name).name).replace("\\", "_")
    return "download" if name in ("", "..") else name
