"""Replies in memory: a hub, and the ends that gateways and replicas hold. Ends may live on different event loops."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from uuid import uuid4

from shared.contracts.inference import Frame, decode_frames, encode_frames
from shared.replies.port import GatewayGone, RepliesLost, RepliesUnavailable

_LOST = None


class _Stream:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[bytes | None] = asyncio.Queue()

    def put(self, raw: bytes | None) -> None:
        self._loop.call_soon_threadsafe(self._items.put_nowait, raw)

    async def get(self) -> bytes | None:
        return await self._items.get()


class MemoryReplyHub:
    """What the ends share. `away=True` makes it answer as if the server were gone."""

    def __init__(self) -> None:
        self.away = False
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}

    def replies(self) -> MemoryReplies:
        """A new end: a gateway's or a replica's."""
        return MemoryReplies(self)

    def flush(self) -> None:
        """Lose everything, as FLUSHALL does: open readers raise RepliesLost, senders GatewayGone."""
        with self._lock:
            lost, self._streams = self._streams, {}
        for stream in lost.values():
            stream.put(_LOST)

    def add(self, address: str) -> _Stream:
        with self._lock:
            stream = self._streams[address] = _Stream()
        return stream

    def drop(self, address: str) -> None:
        with self._lock:
            stream = self._streams.pop(address, None)
        if stream is not None:
            stream.put(_LOST)

    def get(self, address: str) -> _Stream | None:
        with self._lock:
            return self._streams.get(address)


class MemoryReplies:
    """One end of a MemoryReplyHub."""

    def __init__(self, hub: MemoryReplyHub) -> None:
        self._hub = hub
        self._address = ""
        self._stream: _Stream | None = None

    @property
    def away(self) -> bool:
        return self._hub.away

    async def open(self) -> str:
        self._check()
        await self.close()
        self._address = f"gw:{uuid4().hex}"
        self._stream = self._hub.add(self._address)
        return self._address

    async def frames(self) -> AsyncIterator[Sequence[Frame]]:
        stream = self._stream
        if stream is None:
            raise RepliesLost("no stream of replies is open")
        while (raw := await stream.get()) is not _LOST:
            yield decode_frames(raw)
        if stream is self._stream:
            raise RepliesLost("the stream of replies is gone")

    async def send(self, to: str, frames: Sequence[Frame]) -> None:
        self._check()
        stream = self._hub.get(to)
        if stream is None:
            raise GatewayGone(f"nobody reads replies at {to}")
        stream.put(encode_frames(frames))

    async def close(self) -> None:
        self._stream = None
        self._hub.drop(self._address)

    def _check(self) -> None:
        if self._hub.away:
            raise RepliesUnavailable("the server for replies is away")


_hubs: dict[str, MemoryReplyHub] = defaultdict(MemoryReplyHub)


def connect_memory(url: str) -> MemoryReplies:
    """A new end of this process's hub of that URL."""
    return _hubs[url].replies()
