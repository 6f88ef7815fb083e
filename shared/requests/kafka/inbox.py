"""A replica's inbox: a thread that reads its partition from where that ended when it came, and hands over."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, RetriableError

from shared.contracts.inference import Cancel, Request, decode_item
from shared.kafka.clients import consumer, identity_of
from shared.outage import Outage
from shared.requests.kafka.topic import NAME, partition_of

log = logging.getLogger("llmos.requests")

POLL_MS = 200
MOST_UNREAD = 10_000
"""More than a replica ever holds. Past that the thread waits, and the topic keeps what comes."""
AGAIN_S = 0.2


class Inbox:
    """Belongs to one event loop. The place it has reached outlives the servers' losses."""

    def __init__(self, url: str, me: str) -> None:
        self._url = url
        self._me = me
        self._key = me.encode()
        self._where = TopicPartition(NAME, partition_of(me))
        self._loop = asyncio.get_running_loop()
        self._opened = asyncio.Event()
        self._items: asyncio.Queue[Request | Cancel] = asyncio.Queue()
        self._next: int | None = None
        self._outage = Outage(log, f"inbox of {me}")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"inbox:{me}", daemon=True)

    async def open(self) -> None:
        """Returns when the end was found: what was sent before is not for this reader. Waits while Kafka is away."""
        self._thread.start()
        await self._opened.wait()

    async def read(self) -> AsyncIterator[Request | Cancel]:
        while True:
            yield await self._items.get()

    def close(self) -> None:
        """Returns when the thread has ended."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with consumer(self._url, f"inbox:{self._me}") as client:
                    self._read(client)
            except (KafkaError, OSError) as error:
                self._outage.began(error)
                self._stopping.wait(AGAIN_S)
            except Exception:
                log.exception("the inbox of %s failed, and begins anew", self._me)
                self._stopping.wait(AGAIN_S)

    def _read(self, client: KafkaConsumer) -> None:
        client.assign([self._where])
        if self._next is None:
            self._next = client.end_offsets([self._where])[self._where]
            self._tell(self._opened.set)
        client.seek(self._where, self._next)
        identity = identity_of(client, NAME)
        while not self._stopping.is_set():
            self._take(self._poll(client))
            now = identity_of(client, NAME)
            if now is not None and identity is not None and now != identity:
                log.warning("the topic of requests was made anew: the inbox of %s begins at its beginning", self._me)
                self._next = 0
                return
            identity = now or identity

    def _poll(self, client: KafkaConsumer) -> list[Any]:
        if self._items.qsize() > MOST_UNREAD:
            self._stopping.wait(AGAIN_S)
            return []
        try:
            found: list[Any] = client.poll(timeout_ms=POLL_MS).get(self._where, [])
        except RetriableError as error:
            self._outage.began(error)
            self._stopping.wait(AGAIN_S)
            return []
        return found

    def _take(self, records: list[Any]) -> None:
        items = []
        for record in records:
            self._next = record.offset + 1
            if record.key == self._key:
                try:
                    items.append(decode_item(record.value or b""))
                except msgspec.MsgspecError as error:
                    log.error("an item for %s does not decode and is skipped: %s", self._me, error)
        if records:
            self._outage.ended()
        if items:
            self._tell(self._put, items)

    def _put(self, items: list[Request | Cancel]) -> None:
        for item in items:
            self._items.put_nowait(item)

    def _tell(self, deed: Callable[..., None], *what: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(deed, *what)
        except RuntimeError:  # the loop has ended, and with it everybody who reads
            self._stopping.set()
