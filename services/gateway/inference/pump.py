"""The one reader of this gateway's stream of replies: it hands every frame to the request that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from services.gateway.inference.errors import RepliesGone
from services.gateway.inference.pending import Pending
from services.gateway.inference.replicas import Replica
from shared.contracts.inference import Frame, FrameKind
from shared.replies.port import Replies, RepliesLost, RepliesUnavailable

log = structlog.get_logger(__name__)
RETRY_S = 0.5
_load = msgspec.msgpack.Decoder(tuple[int, int])


class Pump:
    """Keeps a stream of replies open. `address` is where replicas answer to, None while there is no stream."""

    def __init__(self, replies: Replies, pending: Pending, replicas: Mapping[str, Replica]) -> None:
        self.address: str | None = None
        self._replies = replies
        self._pending = pending
        self._replicas = replicas

    @property
    def away(self) -> bool:
        """Whether an answer would have no way back now."""
        return self.address is None or self._replies.away

    async def run(self) -> None:
        """Read until cancelled. A lost stream ends the open replies, and a new one is opened."""
        complained = False
        while True:
            try:
                self.address = await self._replies.open()
                log.info("replies open", address=self.address)
                complained = False
                async for frames in self._replies.frames():
                    self.deliver(frames)
            except (RepliesLost, RepliesUnavailable) as error:
                if not complained:
                    log.warning("replies away: open answers end, a new stream is opened", reason=str(error))
                complained = True
            except Exception:  # a reader that ended would leave every later request without an answer
                log.exception("replies cannot be read: open answers end, a new stream is opened")
                complained = True
            self.address = None
            self._pending.fail_all(RepliesGone("The queue lost the answer on its way; ask again", retry_after_s=1))
            if complained:
                await asyncio.sleep(RETRY_S)

    def deliver(self, frames: Sequence[Frame]) -> None:
        """One batch, in order. Frames of requests that nobody waits for are dropped."""
        now = asyncio.get_running_loop().time()
        replies = self._pending.replies
        for frame in frames:
            if frame.kind is FrameKind.alive:
                self._hear(frame, now)
            elif (reply := replies.get(frame.request)) is not None and (attempt := reply.attempt) is not None:
                if frame.attempt == attempt.number:
                    attempt.replica.heard_at = now
                reply.feed(frame)

    def _hear(self, frame: Frame, now: float) -> None:
        replica = self._replicas.get(frame.replica)
        if replica is None:
            return
        try:
            running, waiting = _load.decode(frame.data)
        except msgspec.MsgspecError as error:
            log.warning("a sign of life does not decode", replica=frame.replica, reason=str(error))
        else:
            replica.report(running + waiting, now)
