"""Requests in memory: inboxes of one process. Senders and readers may live on different event loops."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.contracts.inference import Cancel, Request, decode_item, encode_item
from shared.requests.port import RequestsUnavailable


class _Inbox:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.items: asyncio.Queue[bytes] = asyncio.Queue()

    def put(self, raw: bytes) -> None:
        self.loop.call_soon_threadsafe(self.items.put_nowait, raw)

    async def read(self) -> AsyncIterator[Request | Cancel]:
        while True:
            yield decode_item(await self.items.get())


class MemoryRequests:
    """One object that all in the process share. `away=True` makes it answer as if the server were gone."""

    def __init__(self) -> None:
        self.away = False
        self._lock = threading.Lock()
        self._inboxes: dict[str, list[_Inbox]] = defaultdict(list)

    async def send(self, to: str, item: Request | Cancel) -> None:
        if self.away:
            raise RequestsUnavailable("the server for requests is away")
        with self._lock:
            readers = list(self._inboxes[to])
        for inbox in readers:
            inbox.put(encode_item(item))

    @asynccontextmanager
    async def inbox(self, me: str) -> AsyncIterator[AsyncIterator[Request | Cancel]]:
        inbox = _Inbox()
        with self._lock:
            self._inboxes[me].append(inbox)
        try:
            yield inbox.read()
        finally:
            with self._lock:
                self._inboxes[me].remove(inbox)

    async def close(self) -> None:
        """Nothing to let go of: others may still use it."""


_by_url: dict[str, MemoryRequests] = defaultdict(MemoryRequests)


def connect_memory(url: str) -> MemoryRequests:
    """This process's requests of that URL."""
    return _by_url[url]
