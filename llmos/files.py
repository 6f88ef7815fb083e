"""Files that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(file: Path) -> Iterator[BinaryIO]:
    """Write to `file`: it appears under its name when the block ends, and not when it fails.

    A link stays one: what it points to is written. So does what is no regular file, such as a pipe or a device: it gets
    the bytes as they come. Raises OSError.
    """
    try:
        if file.exists() and not file.is_file():
            with file.open("wb") as out:
                yield out
            return
        real = file.resolve()
        part = real.with_name(real.name + ".part")
        try:
            with part.open("wb") as out:
                yield out
            part.replace(real)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        error.filename, error.filename2 = str(file), None  # a failed write names none, a failed opening the .part
        raise


@contextmanager
def sink(to: Path | BinaryIO) -> Iterator[BinaryIO]:
    """A whole file, or the stream that is given, which stays open."""
    if isinstance(to, Path):
        with whole_file(to) as out:
            yield out
    else:
        yield to
        to.flush()
