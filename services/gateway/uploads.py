"""An upload on its way into the store: streamed and hashed, bounded, and gone without a trace when it breaks off."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import BinaryIO

import orjson
from anyio import CancelScope, to_thread
from starlette.requests import ClientDisconnect

from services.gateway.errors import BadRequest, TooLarge
from services.gateway.multipart import MultipartReader, PartBegins, PartEnds
from shared.contracts.written import check_printable
from shared.store.port import ObjectStore
from shared.store.staging import staged_file_key

PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
LISTED_PURPOSES = (*PURPOSES, "assistants_output", "batch_output", "fine-tune-results")
"""OpenAI has files that it makes itself as well: a list of them is empty here."""
BUFFER_BYTES = 2**20
HEAD_BYTES = 2**20
FIELD_BYTES = 4096
RAW_TEXT = (".txt", ".md")
"""Text for pretraining may be uploaded for `fine-tune` as well; everything else there must be JSONL."""


def too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(
        f"The file is larger than {limit_bytes} bytes, the limit for uploads here.", param="file", code="file_too_large"
    )


@dataclass
class Received:
    """What has come in so far; whole when the stream has ended."""

    filename: str = ""
    path: str = ""
    size_bytes: int = 0
    sha256: str = ""
    head: bytes = b""
    fields: dict[str, str] = field(default_factory=dict)


class Sink:
    """The file's bytes into one object. Its methods block: they run in threads, one after the other."""

    def __init__(self, store: ObjectStore, prefix: str, limit_bytes: int) -> None:
        self.received = Received()
        self._store = store
        self._prefix = prefix
        self._limit = limit_bytes
        self._open = ExitStack()
        self._out: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._buffer = bytearray()

    async def begin(self, filename: str) -> None:
        self.received.filename = re.split(r"[/\\]", filename)[-1].strip()[:255] or "upload"
        self.received.path = re.sub(r"[^A-Za-z0-9._-]", "_", self.received.filename)[-128:].lstrip(".") or "data"
        key = staged_file_key(self._prefix, self.received.path)
        self._out = await to_thread.run_sync(self._open.enter_context, self._store.writer(key))

    async def write(self, data: bytes) -> None:
        self._buffer += data
        if self.received.size_bytes + len(self._buffer) > self._limit:
            raise too_large(self._limit)
        if len(self._buffer) >= BUFFER_BYTES:
            await to_thread.run_sync(self._flush)

    async def end(self) -> None:
        """The object is there when this returns."""
        await to_thread.run_sync(self._finish)

    async def abandon(self, error: BaseException) -> None:
        """Leave nothing behind, even when the request itself is being cancelled."""
        with CancelScope(shield=True):
            await to_thread.run_sync(self._abandon, error)

    def _flush(self) -> None:
        assert self._out is not None
        data = bytes(self._buffer)
        self._buffer.clear()
        self._hash.update(data)
        self._out.write(data)
        self.received.size_bytes += len(data)
        self.received.head += data[: HEAD_BYTES - len(self.received.head)]

    def _finish(self) -> None:
        self._flush()
        self._open.close()
        self.received.sha256 = self._hash.hexdigest()

    def _abandon(self, error: BaseException) -> None:
        try:
            self._open.__exit__(type(error), error, error.__traceback__)
        except BaseException as raised:
            if raised is not error:
                raise
        if self.received.path:
            self._store.delete(staged_file_key(self._prefix, self.received.path))


async def receive(body: AsyncIterator[bytes], content_type: str | None, sink: Sink) -> Received:
    """The whole of a multipart upload. Raises BadRequest, TooLarge, StoreError; then the store holds nothing of it."""
    try:
        await _read(body, MultipartReader(content_type), sink)
        check_upload(sink.received)
    except ClientDisconnect as error:
        await sink.abandon(error)
        raise BadRequest("The upload was cut off before its end; send it again.", code="upload_cut_off") from error
    except BaseException as error:
        await sink.abandon(error)
        raise
    return sink.received


async def _read(body: AsyncIterator[bytes], reader: MultipartReader, sink: Sink) -> None:
    """Drive the parser; the part named `file` goes to the sink, the rest is fields."""
    part: PartBegins | None = None
    value = bytearray()
    async for chunk in body:
        for piece in reader.feed(chunk):
            if isinstance(piece, PartBegins):
                part, value = piece, bytearray()
                if piece.name == "file":
                    _check_file(sink, piece)
                    await sink.begin(piece.filename or "upload")
                else:
                    _check_known(piece.name)
            elif part is not None and part.name == "file":
                await (sink.end() if isinstance(piece, PartEnds) else sink.write(piece))
            elif part is not None and isinstance(piece, bytes):
                value += piece
                _check_field(part, value)
            elif part is not None:
                sink.received.fields[part.name] = value.decode("utf-8", "replace")
    if not reader.finished:
        raise BadRequest("The upload ends in the middle of a part; send it again.", code="upload_cut_off")


def _check_known(name: str) -> None:
    if name.partition("[")[0] == "expires_after":
        raise BadRequest(
            "Files do not expire here: leave 'expires_after' out, and delete the file when it is no longer needed.",
            param="expires_after",
            code="unsupported",
        )
    if name != "purpose":
        raise BadRequest(f"Unknown field {name!r}; there are: file, purpose.", param=name, code="unknown_field")


def _check_file(sink: Sink, part: PartBegins) -> None:
    if sink.received.path:
        raise BadRequest("Send one file at a time: there are two parts named 'file'.", param="file", code="two_files")
    if part.filename is None:
        raise BadRequest("The part 'file' must be a file with a name.", param="file", code="invalid_value")
    try:
        check_printable(part.filename)
    except ValueError as error:
        raise BadRequest(f"The file's name: {error}.", param="file", code="invalid_value") from error


def _check_field(part: PartBegins, value: bytearray) -> None:
    if len(value) > FIELD_BYTES:
        raise BadRequest(f"The field {part.name!r} is too long.", param=part.name, code="invalid_value")


def check_upload(received: Received) -> None:
    """What is refused at once. Whether the data can be trained on is the trainer's to say."""
    purpose = received.fields.get("purpose")
    if not received.path:
        raise BadRequest("The field 'file' is missing.", param="file", code="missing_field")
    if purpose is None:
        raise BadRequest("The field 'purpose' is missing.", param="purpose", code="missing_field")
    check_purpose(purpose, PURPOSES)
    if not received.size_bytes:
        raise BadRequest(f"{received.filename!r} is empty.", param="file", code="empty_file")
    if purpose == "fine-tune":
        _check_text(received)


def check_purpose(purpose: str, purposes: Sequence[str]) -> None:
    """Raises BadRequest."""
    if purpose not in purposes:
        raise BadRequest(
            f"Unknown purpose {purpose!r}; there are: {', '.join(purposes)}.", param="purpose", code="invalid_value"
        )


def _check_text(received: Received) -> None:
    """The beginning must be UTF-8, and its first line JSON, unless it is raw text by its name."""
    whole = received.size_bytes <= len(received.head)
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(received.head, final=whole)
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"{received.filename!r} is not UTF-8: byte {error.start} cannot be read; save it as UTF-8.",
            param="file",
            code="not_utf8",
        ) from error
    if received.filename.lower().endswith(RAW_TEXT):
        return
    first, ended, _ = text.lstrip().partition("\n")
    if not ended and not whole:
        return
    if why := _why_no_object(first):
        raise BadRequest(
            f"{received.filename!r}, line 1: {why}; data for fine-tuning is JSONL, one object a line.",
            param="file",
            code="invalid_jsonl",
        )


def _why_no_object(line: str) -> str | None:
    try:
        return None if isinstance(orjson.loads(line), dict) else "not a JSON object"
    except orjson.JSONDecodeError as error:
        return f"not valid JSON ({error.msg} at column {error.colno})"
