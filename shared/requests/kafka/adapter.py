"""The adapter: sending through one producer of the process, each inbox on a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError, RetriableError

from shared.contracts.inference import Cancel, Request, encode_item
from shared.kafka import clients
from shared.kafka.address import Address
from shared.requests.kafka.inbox import Inbox
from shared.requests.kafka.topic import MAX_REQUEST_BYTES, NAME, PARTITIONS, partition_of
from shared.requests.port import RequestsUnavailable

log = logging.getLogger("llmos.requests")

TIMEOUT_S = 3.0
"""A client waits for what is sent, so what the servers do not take soon is refused."""
MAX_IN_FLIGHT_BYTES = 128 * 2**20
MOST_BLOCKED_MS = 200


class KafkaRequests:
    """Requests over the Kafka at `kafka://…` or `kafkas://…`. Belongs to one event loop; connects when used."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        Address.parse(url)
        self._url = url
        self._timeout_s = timeout_s
        self._producer: KafkaProducer | None = None
        self._connecting: asyncio.Task[KafkaProducer] | None = None
        self._in_flight_bytes = 0

    async def send(self, to: str, item: Request | Cancel) -> None:
        raw = encode_item(item)
        if self._in_flight_bytes > MAX_IN_FLIGHT_BYTES:
            raise RequestsUnavailable("too much waits for the servers for requests: they are away or slow")
        self._in_flight_bytes += len(raw)
        try:
            async with asyncio.timeout(self._timeout_s):
                client = self._producer or await self._connect()
                await self._send(client, to, raw)
        except (KafkaError, OSError, TimeoutError) as error:
            reason = str(error) or f"no answer within {self._timeout_s:g} s"
            raise RequestsUnavailable(f"the servers for requests did not take one: {reason}") from error
        finally:
            self._in_flight_bytes -= len(raw)

    @asynccontextmanager
    async def inbox(self, me: str) -> AsyncIterator[AsyncIterator[Request | Cancel]]:
        inbox = Inbox(self._url, me)
        try:
            await inbox.open()
            yield inbox.read()
        finally:
            await asyncio.to_thread(inbox.close)

    async def close(self) -> None:
        if self._connecting is not None:
            await asyncio.wait([self._connecting])
        client, self._producer = self._producer, None
        if client is not None:
            await asyncio.to_thread(clients.close, client)

    async def _connect(self) -> KafkaProducer:
        """The producer, which knows the topic: from then on, sending does not block the loop, but where the topic is
        made anew, and then for `MOST_BLOCKED_MS` at most."""
        if self._connecting is None:
            self._connecting = asyncio.create_task(asyncio.to_thread(self._new_producer))
            self._connecting.add_done_callback(self._connected)
        return await asyncio.shield(self._connecting)  # who stops waiting leaves it to the others

    def _connected(self, task: asyncio.Task[KafkaProducer]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._producer = task.result()

    def _new_producer(self) -> KafkaProducer:
        timeout_ms = int(self._timeout_s * 1000)
        client = clients.producer(
            self._url,
            "requests",
            linger_ms=0,
            request_timeout_ms=timeout_ms,
            delivery_timeout_ms=timeout_ms,
            max_block_ms=MOST_BLOCKED_MS,
            max_request_size=MAX_REQUEST_BYTES,
        )
        try:
            found = clients.partition_count(client, NAME, self._timeout_s)
            if found != PARTITIONS:
                raise KafkaError(
                    f"topic {NAME} has {found} partitions instead of {PARTITIONS}: delete it, and `llmos admin init` "
                    "makes it anew"
                )
        except KafkaError:
            clients.close(client)
            raise
        return client

    async def _send(self, client: KafkaProducer, to: str, raw: bytes) -> None:
        loop = asyncio.get_running_loop()
        taken: asyncio.Future[None] = loop.create_future()

        def settle(error: Exception | None) -> None:
            if taken.done():
                return
            if error is None:
                taken.set_result(None)
            else:
                taken.set_exception(error)

        def from_its_thread(error: Exception | None) -> None:
            try:
                loop.call_soon_threadsafe(settle, error)
            except RuntimeError:
                log.debug("a request was settled after its event loop had ended")

        sent = client.send(NAME, key=to.encode(), value=raw, partition=partition_of(to))
        sent.add_callback(lambda _: from_its_thread(None))
        sent.add_errback(from_its_thread)
        try:
            await taken
        except KafkaError as error:
            if not isinstance(error, RetriableError | MessageSizeTooLargeError):
                await self._replace(client)
            raise

    async def _replace(self, broken: Any) -> None:
        """A producer does not get over some errors. The next to send makes another."""
        if self._producer is broken:
            self._producer = None
            threading.Thread(target=clients.close, args=(broken,), daemon=True).start()
