"""Requests on Valkey: each replica's inbox is a stream that it reads from where the stream ended when it came."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import redis
import redis.asyncio

from shared import valkey
from shared.backoff import Backoff
from shared.contracts.inference import Cancel, Request, decode_item, encode_item
from shared.outage import Outage
from shared.requests.port import RequestsUnavailable

log = logging.getLogger("llmos.requests")

KEPT_ITEMS = 10_000
"""More than a replica ever holds; older ones are dropped."""
KEPT_S = 60
"""An inbox that nobody writes to is forgotten after so long."""
BATCH_BYTES = 1 << 20
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


def stream(replica: str) -> str:
    return f"inbox:{replica}"


class ValkeyRequests:
    """Requests over the server at `unix:///path` or `redis://host:port/0`. Belongs to one event loop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._server = valkey.async_client(url)
        self._leaving: deque[_Leaving] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def send(self, to: str, item: Request | Cancel) -> None:
        leaving = _Leaving(stream(to), encode_item(item), asyncio.get_running_loop().create_future())
        self._leaving.append(leaving)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())
        await leaving.taken

    @asynccontextmanager
    async def inbox(self, me: str) -> AsyncIterator[AsyncIterator[Request | Cancel]]:
        # A connection of its own: a read that waits must not hold up what is sent.
        server = valkey.async_client(self._url, single_connection_client=True)
        inbox = _Inbox(server, me)
        try:
            await inbox.find_end()
            yield inbox.read()
        finally:
            await server.aclose()

    async def close(self) -> None:
        if self._sending is not None:
            await asyncio.wait([self._sending])
        await self._server.aclose()

    async def _send_all(self) -> None:
        """What comes while a round trip is under way goes together in the next one: most of its cost is per trip."""
        while self._leaving:
            batch = self._next_batch()
            try:
                answers = await self._round_trip(batch)
            except Exception as error:  # whatever it is, those who wait must hear of it
                answers = [error] * len(batch)
            for leaving, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    leaving.refuse(answer)
                elif not leaving.taken.done():
                    leaving.taken.set_result(None)
        self._sending = None

    def _next_batch(self) -> list[_Leaving]:
        batch, size = [], 0
        while self._leaving and size < BATCH_BYTES:
            batch.append(self._leaving.popleft())
            size += len(batch[-1].raw)
        return batch

    async def _round_trip(self, batch: list[_Leaving]) -> list[Any]:
        """What the server answered to each."""
        pipe = self._server.pipeline(transaction=False)
        for leaving in batch:
            pipe.xadd(leaving.stream, {"i": leaving.raw}, maxlen=KEPT_ITEMS, approximate=True)
        for name in {leaving.stream for leaving in batch}:
            pipe.expire(name, KEPT_S)
        answers = await pipe.execute(raise_on_error=False)
        return answers[: len(batch)]


@dataclass(frozen=True)
class _Leaving:
    """An item on its way to an inbox. `taken` is done once the server has it."""

    stream: str
    raw: bytes
    taken: asyncio.Future[None]

    def refuse(self, error: Exception) -> None:
        if not self.taken.done():  # a caller that was cancelled waits no longer
            self.taken.set_exception(RequestsUnavailable(f"the server for requests did not take one: {error}"))


class _Inbox:
    """Reads on and on; the place it has reached outlives the server's losses."""

    def __init__(self, server: redis.asyncio.Redis, me: str) -> None:
        self._server = server
        self._stream = stream(me)
        self._after = "0-0"
        self._outage = Outage(log, f"inbox of {me}")

    async def find_end(self) -> None:
        """What was sent before is not for this reader. Waits while the server is away."""
        self._after = await self._insist(self._last_id)

    async def read(self) -> AsyncIterator[Request | Cancel]:
        while True:
            for entry_id, fields in await self._insist(self._next):
                self._after = entry_id.decode()
                try:
                    item = decode_item(fields[b"i"])
                except (msgspec.MsgspecError, KeyError) as error:
                    log.error("an item of %s does not decode and is skipped: %s", self._stream, error)
                else:
                    yield item

    async def _insist(self, read: Any) -> Any:
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            try:
                answer = await read()
            except (redis.RedisError, OSError) as error:
                self._outage.began(error)
                await asyncio.sleep(backoff.next_s())
            else:
                self._outage.ended()
                return answer

    async def _last_id(self) -> str:
        newest: Any = await self._server.xrevrange(self._stream, count=1)
        return str(newest[0][0], "ascii") if newest else "0-0"

    async def _next(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        found: Any = await self._server.xread({self._stream: self._after}, count=256, block=valkey.BLOCK_MS)
        return found[0][1] if found else []
