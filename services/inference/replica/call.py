"""One request in the engine: an ASGI call without a socket, whose answer leaves as frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import msgspec
import structlog

from services.inference.engines import AsgiMessage, Engine
from shared.contracts.inference import Frame, FrameKind, Refusal, Request
from shared.tracing import Span, span

log = structlog.get_logger(__name__)

FRAME_BYTES = 256 << 10
GRACE_S = 2.0
"""Between telling the application that its client left and cancelling it."""
RESTART_S = 5.0
"""When to come again to a replica that has broken down."""
OWN_HEADERS = frozenset({b"host", b"connection", b"content-length", b"transfer-encoding", b"content-type"})

_pack = msgspec.msgpack.Encoder().encode
PutFrame = Callable[[Frame, bool], None]
"""Takes a frame and whether it is urgent."""


class Call:
    """Runs `request` in the engine. Frames count from 0; the last is `end` or `failed`, unless the call was cancelled.

    Where the engine breaks down before the first frame, the only one is `refused`: another replica may answer.
    """

    def __init__(self, request: Request, engine: Engine, put: PutFrame, replica: str) -> None:
        self.request = request
        self._engine = engine
        self._put_frame = put
        self._replica = replica
        self._seq = 0
        self._body_taken = False
        self._over = False
        self._disconnected = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._span = Span(request.traceparent)

    async def run(self) -> None:
        """Returns when the application has ended, in whatever way."""
        if self._disconnected.is_set():
            return  # cancelled before it began
        self._task = asyncio.current_task()
        with _span_of(self.request, self._replica) as self._span:
            await self._work()

    async def _work(self) -> None:
        deadline = self._arm_deadline()
        try:
            await self._engine.app(_scope(self.request), self._receive, self._send)
            if not self._over and not self.break_off():
                self._fail("The engine ended without a whole answer; try again.")
        except asyncio.CancelledError:
            if not self._disconnected.is_set():
                raise
        except Exception as error:
            if not self._disconnected.is_set() and not self.break_off():
                log.exception("request_failed_in_engine", request=self.request.id)
                self._fail(f"The engine failed on this request: {_sentence(error)}")
        finally:
            if deadline is not None:
                deadline.cancel()

    def cancel(self) -> None:
        """Nobody waits for the answer: no more frames, and the engine's work stops.

        The application is told as HTTP would: only that reaches work which it has put into tasks of its own.
        """
        if self._disconnected.is_set():
            return
        self._over = True
        self._span.set(cancelled=True)
        self._disconnected.set()
        if self._task is not None:
            asyncio.get_running_loop().call_later(GRACE_S, self._task.cancel)

    def break_off(self) -> bool:
        """Whether the engine has broken down. Then nothing that it still says is an answer: that it broke is said."""
        reason = self._engine.problem()
        if reason and not self._over:
            self._span.fail(reason)
            if self._seq:
                self._fail(reason)
            else:
                refusal = Refusal(reason, queue=0, retry_after_s=RESTART_S, broken=True)
                self._put(FrameKind.refused, _pack(refusal), urgent=True)
                self._over = True
        return bool(reason)

    def _arm_deadline(self) -> asyncio.TimerHandle | None:
        timeout_ms = self.request.timeout_ms
        if timeout_ms is None:
            return None
        return asyncio.get_running_loop().call_later(timeout_ms / 1000, self._deadline_passed)

    def _deadline_passed(self) -> None:
        if not self._over:
            self._fail(
                f"The answer was not complete within the request's timeout of {self.request.timeout_ms} ms; "
                "ask for fewer tokens or more time."
            )
        self.cancel()

    async def _receive(self) -> AsgiMessage:
        if not self._body_taken:
            self._body_taken = True
            return {"type": "http.request", "body": self.request.body, "more_body": False}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: AsgiMessage) -> None:
        if self._over or self.break_off():
            return
        if message["type"] == "http.response.start":
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            self._span.set(**{"http.response.status_code": message["status"]})
            if message["status"] >= 500:
                self._span.fail(f"status {message['status']}")
            self._put(FrameKind.start, _pack((message["status"], headers)), urgent=True)
        elif message["type"] == "http.response.body":
            self._send_body(message.get("body", b""), last=not message.get("more_body", False))

    def _send_body(self, body: bytes, *, last: bool) -> None:
        whole = len(body) <= FRAME_BYTES
        pieces = [body] if whole else [body[at : at + FRAME_BYTES] for at in range(0, len(body), FRAME_BYTES)]
        if last:
            *pieces, final = pieces
        for piece in pieces:
            if piece:
                self._put(FrameKind.body, piece, urgent=self._seq == 1)
        if last:
            self._put(FrameKind.end, final, urgent=self._seq == 1)
            self._over = True

    def _fail(self, sentence: str) -> None:
        self._span.fail(sentence)
        self._put(FrameKind.failed, sentence.encode(), urgent=True)
        self._over = True

    def _put(self, kind: FrameKind, data: bytes, *, urgent: bool) -> None:
        self._put_frame(Frame(self.request.id, self.request.attempt, self._seq, kind, data, self._replica), urgent)
        self._seq += 1


def _span_of(request: Request, replica: str) -> Span:
    path = request.path.partition("?")[0]
    return span(
        f"{request.method} {path}",
        request.traceparent,
        kind="server",
        request_id=request.id,
        attempt=request.attempt,
        replica=replica,
    )


def _scope(request: Request) -> dict[str, Any]:
    path, _, query = request.path.partition("?")
    headers = [(name.lower(), value) for name, value in request.headers if name.lower() not in OWN_HEADERS]
    own = [(b"content-type", _content_type(request)), (b"content-length", str(len(request.body)).encode())]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"replica"), *own, *headers],
        "client": ("queue", 0),
        "server": ("replica", 0),
        "state": {},
    }


def _content_type(request: Request) -> bytes:
    return next((value for name, value in request.headers if name.lower() == b"content-type"), b"application/json")


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
