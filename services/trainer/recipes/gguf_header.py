"""The metadata at the head of a GGUF file, without its lists: who made it, under which licence, in which format.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_STRING_BYTES = 1 << 24
MAX_ENTRIES = 1 << 24
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Scalar = str | int | float | bool


class BrokenGguf(Exception):
    """The file is no GGUF file, or it was cut off; one sentence."""


def read_gguf_metadata(path: Path) -> dict[str, Scalar]:
    """All entries but lists. Raises BrokenGguf."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise BrokenGguf(f"{path.name} is no GGUF file: it does not begin with GGUF")
        try:
            return _entries(file)
        except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
            raise BrokenGguf(f"the header of {path.name} cannot be read: {error}") from error


def _entries(file: BinaryIO) -> dict[str, Scalar]:
    (version,) = _unpack(file, "I")
    if version not in VERSIONS:
        raise ValueError(f"GGUF version {version} is not known here")
    _, count = _unpack(file, "QQ")
    if count > MAX_ENTRIES:
        raise ValueError(f"it claims {count} entries")
    found = {}
    for _ in range(count):
        key = _string(file)
        value = _value(file, *_unpack(file, "I"))
        if value is not None:
            found[key] = value
    return found


def _value(file: BinaryIO, kind: int) -> Scalar | None:
    """One value; None for a list, which is skipped."""
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        scalar: Scalar = _unpack(file, SCALARS[kind])[0]
        return scalar
    item, count = _unpack(file, "IQ")
    if item in SCALARS:
        file.seek(count * struct.calcsize("<" + SCALARS[item]), 1)
    else:
        for _ in range(count):
            _skip(file, item)
    return None


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == STRING:
        file.seek(_unpack(file, "Q")[0], 1)
    else:
        _value(file, kind)


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    if length > MAX_STRING_BYTES:
        raise ValueError(f"it claims a text of {length} bytes")
    raw = file.read(length)
    if len(raw) != length:
        raise ValueError("it ends in the middle of a text")
    return raw.decode("utf-8")


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    form = "<" + form
    return struct.unpack(form, file.read(struct.calcsize(form)))
