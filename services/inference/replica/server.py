"""The serving loop of a replica: inbox items in, engine calls, frames out. It never pauses its inbox."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator

import msgspec
import structlog

from services.inference.engines import Engine
from services.inference.replica.call import Call
from services.inference.replica.outbox import Outbox
from shared.contracts.inference import Cancel, Frame, FrameKind, Refusal, Request
from shared.replies.port import Replies

log = structlog.get_logger(__name__)

ALIVE_S = 1.0
REMEMBERED = 8192
"""Requests whose repetition is known and ignored."""
LONGEST_RETRY_S = 30.0

_pack = msgspec.msgpack.Encoder().encode
Key = tuple[str, int]


class Server:
    """Serves one replica's requests with `engine`, at most `max_queue` at once."""

    def __init__(self, replica_id: str, engine: Engine, replies: Replies, max_queue: int) -> None:
        self._replica_id = replica_id
        self._engine = engine
        self._max_queue = max_queue
        self._outbox = Outbox(replies, self._gateway_gone)
        self._calls: dict[Key, tuple[Call, asyncio.Task[None]]] = {}
        self._of_gateway: dict[str, set[Key]] = {}
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._mean_s = 1.0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        self.broke = asyncio.Event()
        """A request has found that the engine has broken down."""

    @property
    def load(self) -> tuple[int, int]:
        """Requests that the engine works on, and those that wait for it."""
        running = min(len(self._calls), self._engine.slots)
        return running, len(self._calls) - running

    async def serve(self, items: AsyncIterator[Request | Cancel]) -> None:
        """Take items until cancelled, and tell the gateways that wait here that this replica lives."""
        alive = asyncio.create_task(self._say_alive())
        try:
            async for item in items:
                self.take(item)
        finally:
            alive.cancel()

    def take(self, item: Request | Cancel) -> None:
        """One item of the inbox; never waits."""
        key = (item.id, item.attempt)
        if isinstance(item, Cancel):
            self._remember(key)  # should the cancel have overtaken its request, that is not begun
            if call := self._calls.get(key):
                call[0].cancel()
        elif key not in self._seen:
            self._remember(key)
            if self.draining:
                self._refuse(item, "this replica is stopping")
            elif len(self._calls) >= self._max_queue:
                self._refuse(item, f"this replica holds {self._max_queue} requests already")
            else:
                self._begin(item, key)

    async def drain(self) -> None:
        """Take no more requests; returns when those at hand are answered."""
        self.draining = True
        await self._idle.wait()

    async def close(self) -> None:
        """Cancel what still runs and send the frames that wait. Of a broken engine, every request hears so."""
        for call, _ in self._calls.values():
            call.break_off()
        tasks = [task for _, task in self._calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._outbox.close()

    def _begin(self, request: Request, key: Key) -> None:
        def put(frame: Frame, urgent: bool) -> None:
            self._outbox.put(request.reply_to, frame, urgent=urgent)

        call = Call(request, self._engine, put, self._replica_id)
        task = asyncio.create_task(call.run())
        self._calls[key] = call, task
        self._of_gateway.setdefault(request.reply_to, set()).add(key)
        self._idle.clear()
        began = asyncio.get_running_loop().time()
        task.add_done_callback(lambda _: self._ended(key, request.reply_to, began))

    def _ended(self, key: Key, address: str, began: float) -> None:
        del self._calls[key]
        if self._engine.problem():
            self.broke.set()
        self._mean_s += 0.1 * (asyncio.get_running_loop().time() - began - self._mean_s)
        keys = self._of_gateway.get(address, set())
        keys.discard(key)
        if not keys:
            self._of_gateway.pop(address, None)
            self._outbox.forget(address)
        if not self._calls:
            self._idle.set()

    def _refuse(self, request: Request, reason: str) -> None:
        running, waiting = self.load
        retry_after_s = min(LONGEST_RETRY_S, max(1.0, self._mean_s * (waiting + 1) / self._engine.slots))
        refusal = Refusal(reason=reason, queue=running + waiting, retry_after_s=round(retry_after_s, 1))
        frame = Frame(request.id, request.attempt, 0, FrameKind.refused, _pack(refusal), self._replica_id)
        self._outbox.put(request.reply_to, frame, urgent=True)
        if request.reply_to not in self._of_gateway:
            self._outbox.forget(request.reply_to)

    def _gateway_gone(self, address: str) -> None:
        for key in list(self._of_gateway.get(address, ())):
            self._calls[key][0].cancel()

    async def _say_alive(self) -> None:
        while True:
            await asyncio.sleep(ALIVE_S)
            load = _pack(self.load)
            for address in list(self._of_gateway):
                frame = Frame("", 0, 0, FrameKind.alive, load, self._replica_id)
                self._outbox.put(address, frame, urgent=True)

    def _remember(self, key: Key) -> None:
        self._seen[key] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
