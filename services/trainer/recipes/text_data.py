"""Raw text for pretraining: `.jsonl` files with `{"text": …}`, any other file as plain text. UTF-8 throughout."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from services.trainer.recipes.jsonl import Line, bad_data, data_files, json_lines

CHUNK_BYTES = 1 << 20
HARMLESS = frozenset({"id", "metadata", "meta", "source", "url"})
END = None
"""Marks the end of a document in the stream of its pieces."""


def pieces(folder: Path, param: str) -> Iterator[str | None]:
    """The corpus in pieces of about a mebibyte at most, cut at line ends, and END after each document.

    A plain file is one document, a JSONL line is one. Raises RecipeError at the first byte or line that is wrong.
    """
    for name, path in data_files(folder, param):
        if path.suffix == ".jsonl":
            for line in json_lines(name, path, param):
                yield from _split(_text(line))
                yield END
        else:
            yield from _plain(name, path, param)
            yield END


def texts(folder: Path, param: str) -> Iterator[str]:
    """The pieces without the marks: what a tokenizer is trained on."""
    return (piece for piece in pieces(folder, param) if piece is not END)


def check(folder: Path, param: str) -> int:
    """The number of characters, every one of them read. Raises RecipeError where there is no text."""
    letters, some_text = 0, False
    for piece in texts(folder, param):
        letters += len(piece)
        some_text = some_text or not piece.isspace()
    if not some_text:
        raise bad_data(f"The input {param} has no text: there is nothing but white space", param)
    return letters


def _text(line: Line) -> str:
    if "text" not in line.value:
        raise line.refuse("'text' is missing", 'A line is {"text": …}.')
    if unknown := sorted(line.value.keys() - HARMLESS - {"text"}):
        raise line.refuse(f"unknown field {unknown[0]!r}", 'A line is {"text": …}.')
    text = line.value["text"]
    if not isinstance(text, str):
        raise line.refuse("'text' must be a string")
    if not text.strip():
        raise line.refuse("'text' is empty")
    return text


def _plain(name: str, path: Path, param: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest, line, position = "", 1, 0
    with path.open("rb") as file:
        while True:
            raw = file.read(CHUNK_BYTES)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                # `error.object` is the undecoded rest of the chunk before, then this one.
                held = len(error.object) - len(raw)
                number = line + error.object[: error.start].count(b"\n")
                raise bad_data(
                    f"{name}, line {number}: not UTF-8: byte 0x{error.object[error.start]:02x} "
                    f"at offset {position - held + error.start} of the file",
                    param,
                    "Save the file as UTF-8.",
                ) from error
            if position == 0:
                text = text.removeprefix("\ufeff")
            position += len(raw)
            line += text.count("\n")
            if not raw:
                break
            whole, end, rest = (rest + text).rpartition("\n")
            yield from _split(whole + end)
            if len(rest) > CHUNK_BYTES:
                yield from _split(rest)
                rest = ""
    yield from _split(rest)


def _split(text: str) -> Iterator[str]:
    """Pieces of at most CHUNK_BYTES characters, cut after a line end or a space where there is one."""
    start = 0
    while start < len(text):
        end = min(start + CHUNK_BYTES, len(text))
        if end < len(text):
            cut = max(text.rfind("\n", start, end), text.rfind(" ", start, end))
            # Byte-level tokens begin with their space, so the cut is in front of it.
            end = cut if cut > start else end
        yield text[start:end]
        start = end
