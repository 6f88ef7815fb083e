"""Replies on Valkey: one stream per gateway start, which lives only as long as its gateway renews it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import msgspec
import redis
import redis.asyncio

from shared import valkey
from shared.backoff import Backoff
from shared.contracts.inference import Frame, decode_frames, encode_frames
from shared.outage import Outage
from shared.replies.port import GatewayGone, RepliesLost, RepliesUnavailable

log = logging.getLogger("llmos.replies")

LIVES_S = 30
RENEW_EVERY_S = 5.0
TRIM_EVERY = 1024
"""Entries read between two trims, or less at a renewal: what is read is of no use to anyone."""
KEPT_ENTRIES = 100_000
"""Against a gateway that renews and does not read: the oldest are dropped."""
BLOCK_MS = 1000
"""How long a read waits for frames; after one in vain the reader looks whether its stream is still there."""
READ_AGAIN_S = 0.2
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


class ValkeyReplies:
    """One end of the replies over the server at `unix:///path` or `redis://host:port/0`. Belongs to one event loop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._server = valkey.async_client(url)
        self._stream: _Stream | None = None

    async def open(self) -> str:
        await self._drop()
        self._stream = await _Stream.make(self._url)
        return self._stream.address

    async def frames(self) -> AsyncIterator[Sequence[Frame]]:
        stream = self._stream
        if stream is None:
            raise RepliesLost("no stream of replies is open")
        async for frames in stream.read():
            yield frames

    async def send(self, to: str, frames: Sequence[Frame]) -> None:
        try:
            entry_id = await self._server.xadd(
                to, {"f": encode_frames(frames)}, nomkstream=True, maxlen=KEPT_ENTRIES, approximate=True
            )
        except (redis.RedisError, OSError) as error:
            raise RepliesUnavailable(f"the server for replies did not take frames: {error}") from error
        if entry_id is None:
            raise GatewayGone(f"nobody reads replies at {to}")

    @property
    def away(self) -> bool:
        return self._stream is not None and self._stream.away

    async def close(self) -> None:
        await self._drop()
        await self._server.aclose()

    async def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()


class _Stream:
    """A gateway's own stream: one connection reads it, a task renews it and trims what was read."""

    def __init__(self, url: str) -> None:
        self.address = f"gw:{uuid4().hex}"
        self._url = url
        self._keeper = valkey.async_client(url, single_connection_client=True)
        self._after = "0-0"
        self._lost = False
        self._closed = False
        self._trim = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._outage = Outage(log, "replies")

    @property
    def away(self) -> bool:
        return self._outage.lasts

    @classmethod
    async def make(cls, url: str) -> _Stream:
        """A stream that is there and renewed from now on. Raises RepliesUnavailable."""
        stream = cls(url)
        pipe = stream._keeper.pipeline(transaction=True)
        pipe.xadd(stream.address, {"o": b""})
        pipe.expire(stream.address, LIVES_S)
        try:
            opened, _ = await pipe.execute()
        except (redis.RedisError, OSError) as error:
            await stream.close()
            raise RepliesUnavailable(f"the server for replies does not open a stream: {error}") from error
        stream._after = opened.decode()
        stream._keeping = asyncio.create_task(stream._keep(), name=f"keep {stream.address}")
        return stream

    async def read(self) -> AsyncIterator[Sequence[Frame]]:
        """Ends soon after it is closed. Raises RepliesLost."""
        # A connection of its own: a read that waits must not hold up the renewal.
        server = valkey.async_client(self._url, single_connection_client=True)
        read = 0
        try:
            while not self._closed:
                for entry_id, fields in await self._next(server):
                    self._after = entry_id.decode()
                    read += 1
                    if read % TRIM_EVERY == 0:
                        self._trim.set()
                    if frames := self._decode(fields):
                        yield frames
        finally:
            await server.aclose()

    async def _next(self, server: redis.asyncio.Redis) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """What came since; empty when nothing came for a while, or the server is away. Raises RepliesLost."""
        try:
            found: Any = await server.xread({self.address: self._after}, count=256, block=BLOCK_MS)
            if found:
                return list(found[0][1])
            self._lost = self._lost or not await server.exists(self.address)
        except (redis.RedisError, OSError) as error:
            self._outage.began(error)
            self._trim.set()  # who renews finds out when it is over
            await asyncio.sleep(READ_AGAIN_S)
        if self._lost and not self._closed:
            raise RepliesLost("the stream of replies is gone: the server was flushed, restarted or away too long")
        return []

    async def close(self) -> None:
        """Let the stream go: whoever still sends to it learns that its gateway is gone."""
        self._closed = True
        if self._keeping is not None:
            self._trim.set()  # no cancel: redis-py may swallow one while it connects
            await asyncio.wait([self._keeping])
            try:
                await self._keeper.delete(self.address)
            except (redis.RedisError, OSError) as error:
                log.info("the stream of replies %s could not be deleted, and will expire: %s", self.address, error)
        await self._keeper.aclose()

    def _decode(self, fields: dict[bytes, bytes]) -> list[Frame]:
        try:
            return decode_frames(fields[b"f"])
        except (msgspec.MsgspecError, KeyError) as error:
            log.error("an entry of %s does not decode and is skipped: %s", self.address, error)
            return []

    async def _keep(self) -> None:
        """Renew until the stream is lost: it is not there any more, or it cannot be renewed within its life."""
        renewed_at = time.monotonic()
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while not (self._lost or self._closed):
            try:
                self._lost = not await self._renew()
            except (redis.RedisError, OSError) as error:
                self._outage.began(error)
                self._lost = time.monotonic() - renewed_at > LIVES_S
                await asyncio.sleep(backoff.next_s())
            else:
                self._outage.ended()
                renewed_at = time.monotonic()
                backoff.reset()
                await self._next_renewal()

    async def _renew(self) -> bool:
        """Whether the stream is there."""
        pipe = self._keeper.pipeline(transaction=False)
        pipe.expire(self.address, LIVES_S)
        pipe.xtrim(self.address, minid=self._after, approximate=True)
        renewed, _ = await pipe.execute()
        return bool(renewed)

    async def _next_renewal(self) -> None:
        try:
            async with asyncio.timeout(RENEW_EVERY_S):
                await self._trim.wait()
        except TimeoutError:
            return
        self._trim.clear()
