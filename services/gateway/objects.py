"""Objects of the store as HTTP answers, whole or by range."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from urllib.parse import quote

from fastapi.responses import RedirectResponse, Response, StreamingResponse

from services.gateway.errors import NoSuchRange
from shared.contracts.artifacts import ManifestFile, blob_key
from shared.store.port import ObjectStore

LINKED_FROM_BYTES = 64 * 2**20
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def serve_file(
    store: ObjectStore, file: ManifestFile, name: str, asked_range: str | None, media: str = "application/octet-stream"
) -> Response:
    """The blob of a file; a large one by way of the store itself, where clients reach it.

    Raises ObjectNotFound before anything is sent, and NoSuchRange.
    """
    if file.size_bytes >= LINKED_FROM_BYTES and (url := store.link(blob_key(file.sha256), disposition(name))):
        return RedirectResponse(url, 307)
    window = _window(asked_range, file.size_bytes)
    start, end = window or (0, file.size_bytes)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(end - start),
        "Content-Disposition": disposition(name),
        "ETag": f'"{file.sha256}"',
    }
    if window:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size_bytes}"
    chunks = begun(store.read(blob_key(file.sha256), start, end - start))
    return StreamingResponse(chunks, 206 if window else 200, headers=headers, media_type=media)


def begun(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, the first of them read already, so that what is missing is known before the answer begins."""
    first = next(chunks, b"")
    return itertools.chain([first], chunks)


def disposition(name: str) -> str:
    """As RFC 6266 wants names that are not ASCII."""
    plain = "".join(
        letter if letter.isascii() and letter.isprintable() and letter not in '"\\' else "_" for letter in name
    )
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, errors='replace')}"


def _window(asked: str | None, size: int) -> tuple[int, int] | None:
    """(start, end) of one range; None for the whole, which is also the answer to what is not understood (RFC 9110)."""
    found = _RANGE.fullmatch(asked.strip()) if asked else None
    if not found or found.group(0) == "bytes=-":
        return None
    first, last = (int(text[:18]) if text else None for text in found.groups())
    if first is None:
        start, end = max(size - (last or 0), 0), size
    else:
        start, end = first, size if last is None else min(last + 1, size)
    if start >= end:
        raise NoSuchRange(
            f"The file has {size} bytes; there is no {asked!r} in it.", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, end
