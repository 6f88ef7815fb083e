"""Files that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(file: Path) -> Iterator[BinaryIO]:
    """Write to `file`: it appears under its name when the block ends, and not when it fails. Raises OSError."""
    part = file.with_name(file.name + ".part")
    try:
        with part.open("wb") as out:
            yield out
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(file)
