"""Reading the user's files line by line, so that whatever is wrong is named by file, line and reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from services.trainer.recipes.api import RecipeError
from shared.contracts.jobs import FailureReason

MAX_LINE_BYTES = 64 * 2**20
"""A line is read whole; a longer one is a mistake (a file without line ends), not a sample."""


@dataclass(frozen=True)
class Line:
    """One JSON object and where it stands. `file` is the path within the input."""

    file: str
    number: int
    value: dict[str, Any]
    param: str

    def refuse(self, reason: str, hint: str = "") -> RecipeError:
        return bad_line(self.file, self.number, reason, self.param, hint)


def bad_data(message: str, param: str, hint: str = "") -> RecipeError:
    return RecipeError(FailureReason.bad_data, message, hint, param)


def bad_line(file: str, number: int, reason: str, param: str, hint: str = "") -> RecipeError:
    return bad_data(f"{file}, line {number}: {reason}", param, hint)


def data_files(folder: Path, param: str) -> list[tuple[str, Path]]:
    """The files of an input by name, in order. Raises RecipeError where there is none, or none has a byte in it."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    if not files:
        raise bad_data(f"The input {param} has no files", param, "Upload at least one file.")
    if not any(path.stat().st_size for _, path in files):
        names = ", ".join(name for name, _ in files)
        raise bad_data(f"The input {param} is empty: {names} has no bytes", param)
    return files


def json_lines(name: str, path: Path, param: str) -> Iterator[Line]:
    """Every line of a JSONL file; blank lines are passed over. Raises RecipeError at the first that is no object."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                raise bad_line(name, number, f"longer than {MAX_LINE_BYTES // 2**20} MiB", param)
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield Line(name, number, _object(raw, name, number, param), param)


def _object(raw: bytes, name: str, number: int, param: str) -> dict[str, Any]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start} of the line"
        raise bad_line(name, number, reason, param, "Save the file as UTF-8.") from error
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = f"not valid JSON: {_why_no_json(text, error)} at column {error.colno}"
        raise bad_line(name, number, reason, param, "Each line must be one JSON object.") from error
    if not isinstance(value, dict):
        raise bad_line(name, number, f"a JSON object is needed, not {_kind(value)}", param)
    return value


def _why_no_json(text: str, error: orjson.JSONDecodeError) -> str:
    """In words of the data where Python's own json would have written what JSON does not know."""
    if word := re.match(r"NaN|Infinity", text[error.pos :]):
        return f"{word[0]} is no number of JSON"
    if "surrogate" in error.msg:
        return "half a character (a \\uD800 to \\uDFFF without its other half)"
    return str(error.msg).split(": line")[0]


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")
