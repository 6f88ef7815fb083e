"""Requests under way: each waits here for its frames, in order, and bounded for a client that reads slowly."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from services.gateway.inference.errors import ClientTooSlow, ReplicaLost
from services.gateway.inference.replicas import Replica
from shared.contracts.inference import Frame, FrameKind

REPLY_LIMIT_BYTES = 2**20
TOTAL_LIMIT_BYTES = 64 * 2**20
FAREWELL_S = 10.0
"""How long a client that does not read is waited for once its answer has failed, so that it may see the error."""


@dataclass
class Attempt:
    """One sending of a request to one replica, and to the process (`boot_id`) that was behind it then."""

    replica: Replica
    number: int
    boot_id: str
    sent_at: float
    next_seq: int = 0
    over: bool = False
    """The replica has said its last word: there is nothing to call back."""


class Reply:
    """The answer to one request as it comes in. The pump feeds it; one task takes from it."""

    def __init__(self, request_id: str, pending: Pending) -> None:
        self.id = request_id
        self.attempt: Attempt | None = None
        self.sending = False
        """The client is being written to. Where this lasts until more frames come, it reads too slowly."""
        self.patience: asyncio.Timeout | None = None
        """Ends the writing to a client that does not read; set off when the answer has failed."""
        self._pending = pending
        self._frames: list[Frame] = []
        self._held_bytes = 0
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def begin(self, attempt: Attempt) -> None:
        """From now on only this attempt's frames count."""
        self.release()
        self.attempt = attempt
        attempt.replica.in_flight += 1
        if isinstance(self._failure, ReplicaLost):
            self._failure = None

    def release(self) -> None:
        """Forget the current attempt and what is held of its answer."""
        if self.attempt is not None:
            self.attempt.replica.in_flight -= 1
            self.attempt = None
        self._drop_frames()

    def feed(self, frame: Frame) -> None:
        """Take the next frame of the current attempt. Those of an older one, doubles, and late ones are dropped."""
        attempt = self.attempt
        if attempt is None or frame.attempt != attempt.number or frame.seq < attempt.next_seq or self._failure:
            return
        if frame.seq > attempt.next_seq:
            self.fail(ReplicaLost(f"A piece of the answer was lost on its way from replica {attempt.replica.id}"))
            return
        size_bytes = len(frame.data)
        if self.sending and not self._pending.has_room(self._held_bytes, size_bytes):
            self._drop_frames()
            self.fail(ClientTooSlow("The answer was cut off: it came faster than this client read it"))
            return
        attempt.next_seq += 1
        attempt.over = frame.kind not in (FrameKind.start, FrameKind.body)
        self._frames.append(frame)
        self._held_bytes += size_bytes
        self._pending.held_bytes += size_bytes
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the answer with this error, after the frames that are here. A lost replica is the weakest of reasons."""
        if self._failure is None or isinstance(self._failure, ReplicaLost):
            self._failure = error
        if self.sending and self.patience is not None and not self.patience.expired():
            self.patience.reschedule(asyncio.get_running_loop().time() + FAREWELL_S)
        self._wake()

    async def take(self) -> list[Frame]:
        """All the frames that are here, at least one. Raises what the answer failed of."""
        while not self._frames:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        frames = self._frames
        self._drop_frames()
        return frames

    def _drop_frames(self) -> None:
        self._frames = []
        self._pending.held_bytes -= self._held_bytes
        self._held_bytes = 0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Pending:
    """All open replies of this gateway, by request id."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.held_bytes = 0

    def open(self, request_id: str) -> Reply:
        reply = self.replies[request_id] = Reply(request_id, self)
        return reply

    def close(self, reply: Reply) -> None:
        del self.replies[reply.id]
        reply.release()

    def has_room(self, held_bytes: int, more_bytes: int) -> bool:
        """Whether a slow client's answer of `held_bytes` may keep so many more."""
        return held_bytes + more_bytes <= REPLY_LIMIT_BYTES and self.held_bytes + more_bytes <= TOTAL_LIMIT_BYTES

    def fail_all(self, error: Exception) -> None:
        for reply in self.replies.values():
            reply.fail(error)

    def lose_process(self, replica: Replica) -> None:
        """The process behind the replica is another one now, or none: what was sent to the one before is lost."""
        for attempt, reply in self._attempts():
            if attempt.replica is replica and (attempt.boot_id != replica.status.boot_id or not replica.holds_requests):
                why = f" ({replica.status.reason})" if replica.status.reason else ""
                reply.fail(ReplicaLost(f"Replica {replica.id} ended while it worked on this request{why}; ask again"))

    def lose_silent(self, now: float, awake_since: float, silence_s: float) -> None:
        """Give up the replicas that gave no sign of life for so long since they were asked.

        `awake_since`: until then this process itself may have been too busy, or stopped, to hear one.
        """
        for attempt, reply in self._attempts():
            heard_at = max(attempt.sent_at, attempt.replica.heard_at, awake_since)
            if not attempt.over and now - heard_at > silence_s:
                reply.fail(ReplicaLost(f"Replica {attempt.replica.id} gave no sign of life for {silence_s:g} s"))

    def _attempts(self) -> list[tuple[Attempt, Reply]]:
        return [(reply.attempt, reply) for reply in self.replies.values() if reply.attempt is not None]
