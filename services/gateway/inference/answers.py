"""The answer's way out: the frames of a reply become an HTTP response, as they come or whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
from starlette.types import Send

from services.gateway.errors import envelope
from services.gateway.inference.dispatch import failure_of
from services.gateway.inference.errors import InferenceError, NotOffered, ReplicaFailed
from services.gateway.inference.pending import Reply
from shared.contracts.inference import Frame, FrameKind

log = structlog.get_logger(__name__)
WHOLE_LIMIT_BYTES = 2**20
"""An answer that is no stream goes out whole, so that its failure has a status; a larger one goes out as it comes."""
NO_SUCH_ROUTE = b'{"detail":"Not Found"}'
"""How an engine's application says that this model's tasks do not include the path."""
HOP_BY_HOP = frozenset({b"connection", b"date", b"keep-alive", b"server", b"transfer-encoding", b"x-request-id"})
_start = msgspec.msgpack.Decoder(tuple[int, list[tuple[Any, Any]]])


def read_start(frame: Frame) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Status and headers of an answer, without those that belong to one connection."""
    if frame.kind is not FrameKind.start:
        raise ReplicaFailed("The replica's answer did not begin at its beginning")
    try:
        status, headers = _start.decode(frame.data)
    except msgspec.MsgspecError as error:
        raise ReplicaFailed(f"The replica's answer begins in a form not known here: {error}") from error
    pairs = [(_bytes(name).lower(), _bytes(value)) for name, value in headers]
    return status, [(name, value) for name, value in pairs if name not in HOP_BY_HOP]


def read_pieces(frames: Sequence[Frame]) -> tuple[bytes, bool, InferenceError | None]:
    """What frames after the first carry: bytes, whether they are the last, and what went wrong after them."""
    pieces = []
    for frame in frames:
        if frame.kind is FrameKind.body:
            pieces.append(frame.data)
        elif frame.kind is FrameKind.end:
            pieces.append(frame.data)
            return b"".join(pieces), True, None
        else:
            return b"".join(pieces), False, failure_of(frame)
    return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), False, None


async def pass_on(reply: Reply, first: list[Frame], send: Send) -> int:
    """Send the answer to the client; its status. Raises InferenceError before it began, AnswerBrokeOff after."""
    status, headers = read_start(first[0])
    headers.append((b"x-request-id", reply.id.encode()))
    streams = any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
    data, ended, error = read_pieces(first[1:])
    while not (streams or ended or error or len(data) > WHOLE_LIMIT_BYTES):
        more, ended, error = read_pieces(await reply.take())
        data += more
    if error is not None and not streams:
        raise error
    if status >= 400 and ended:
        headers, data = _as_error(status, headers, data)
    out = _Outgoing(reply, send)
    await out.start(status, headers)
    try:
        if data or ended:
            await out.write(data, last=ended)
        while not ended:
            if error is not None:
                raise error
            data, ended, error = read_pieces(await reply.take())
            if data or ended:
                await out.write(data, last=ended)
    except InferenceError as broken:
        log.info("answer broke off", request=reply.id, reason=broken.message)
        if streams:
            await out.write(broken.event(), last=True)
        raise AnswerBrokeOff(broken) from broken
    return status


async def read_whole(reply: Reply, first: list[Frame]) -> tuple[int, bytes]:
    """Status and body of an answer that is no stream. Raises InferenceError."""
    status, _ = read_start(first[0])
    data, ended, error = read_pieces(first[1:])
    while not ended:
        if error is not None:
            raise error
        more, ended, error = read_pieces(await reply.take())
        data += more
    return status, in_envelope(data) if status >= 400 else data


def _as_error(status: int, headers: list[tuple[bytes, bytes]], data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an answer that is an error. Raises NotOffered."""
    if status == 404 and data == NO_SUCH_ROUTE:
        raise NotOffered("This model's engine does not answer here: embeddings, scores and ranks need a model for them")
    data = in_envelope(data)
    others = [(name, value) for name, value in headers if name != b"content-length"]
    return [*others, (b"content-length", str(len(data)).encode())], data


def in_envelope(data: bytes) -> bytes:
    """An engine's error as all errors are here: what its web framework refuses it answers in a form of its own."""
    try:
        answer = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data
    if not isinstance(answer, dict) or "detail" not in answer or "error" in answer:
        return data
    detail = answer["detail"]
    message = detail if isinstance(detail, str) else msgspec.json.encode(detail).decode()
    return msgspec.json.encode(envelope(f"The engine refused: {message}", "invalid_request_error"))


class AnswerBrokeOff(Exception):
    """The answer had begun. A stream ends with the error; the connection of another answer is closed short."""

    def __init__(self, error: InferenceError) -> None:
        super().__init__(error.message)
        self.error = error


class _Outgoing:
    """Writes to the client, and lets the reply know while the client does not read."""

    def __init__(self, reply: Reply, send: Send) -> None:
        self._reply = reply
        self._send = send

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, last: bool) -> None:
        reply = self._reply
        reply.sending = True
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        reply.sending = False


def _bytes(value: bytes | str) -> bytes:
    return value.encode("latin-1") if isinstance(value, str) else value
