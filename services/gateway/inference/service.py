"""The gateway's side of inference: what it follows, what runs in the background, and its routes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from fastapi import APIRouter

from services.gateway.inference import metrics
from services.gateway.inference.dispatch import Dispatcher
from services.gateway.inference.errors import RepliesGone
from services.gateway.inference.pending import Pending
from services.gateway.inference.pump import Pump
from services.gateway.inference.routes import make_answering, make_router
from services.gateway.inference.table import RoutingTable
from shared.bus.port import Bus, Record, Subscription
from shared.contracts import topics
from shared.contracts.topics import Topic
from shared.replies.port import Replies
from shared.requests.port import Requests
from shared.settings import Settings
from shared.stopping import all_at_once

log = structlog.get_logger(__name__)
FOLLOWED = (topics.REGISTRY_STATE, topics.DEPLOYMENTS_DESIRED, topics.DEPLOYMENTS_STATUS)
CANCEL_AGAIN_S = 0.5


class InferenceGateway:
    """Routes requests to replicas through the queue and their answers back. Owns `requests` and `replies`."""

    def __init__(self, settings: Settings, bus: Bus, requests: Requests, replies: Replies) -> None:
        self._bus = bus
        self._requests = requests
        self._replies = replies
        self._silence_s = settings.replica_silence_s
        self._table = RoutingTable()
        self._pending = Pending()
        self._pump = Pump(replies, self._pending, self._table.replicas)
        self._dispatcher = Dispatcher(self._table, requests, self._pending, self._pump, self._silence_s)
        self._behind = {topic.name for topic in FOLLOWED}
        self._subscriptions: list[Subscription] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.answering = make_answering(self._dispatcher, settings.request_timeout_s)
        self.router: APIRouter = make_router(self.answering)

    async def start(self) -> None:
        """Begin to follow the state topics and to read replies. Does not wait for either."""
        metrics.BUFFERED.set_function(lambda: self._pending.held_bytes)
        loop = asyncio.get_running_loop()
        for topic in FOLLOWED:
            self._subscriptions.append(await asyncio.to_thread(self._follow, topic, loop))
        self._tasks = [loop.create_task(self._pump.run()), loop.create_task(self._listen_for_silence())]

    async def stop(self) -> None:
        await asyncio.to_thread(all_at_once, [subscription.close for subscription in self._subscriptions])
        await end_tasks(self._tasks)
        self._pending.fail_all(RepliesGone("The gateway stops; ask again", retry_after_s=1))
        await self._dispatcher.stop()
        await self._replies.close()
        await self._requests.close()

    def ready(self) -> str | None:
        """None when requests can be routed, else what is missing."""
        if self._behind:
            return f"routing has not caught up with {', '.join(sorted(self._behind))}"
        if self._pump.away:
            return "the queue that carries answers is away"
        return None

    def _follow(self, topic: Topic, loop: asyncio.AbstractEventLoop) -> Subscription:
        """The bus calls on threads of its own; the table belongs to the event loop."""

        def on(record: Record) -> None:
            loop.call_soon_threadsafe(self._apply, record)

        def caught_up() -> None:
            loop.call_soon_threadsafe(self._behind.discard, topic.name)

        return self._bus.follow(topic, on, caught_up)

    def _apply(self, record: Record) -> None:
        replica = self._table.apply(record, asyncio.get_running_loop().time())
        if replica is not None:
            self._pending.lose_process(replica)

    async def _listen_for_silence(self) -> None:
        loop = asyncio.get_running_loop()
        awake_since = looked_at = loop.time()
        while True:
            await asyncio.sleep(self._silence_s / 10)
            now = loop.time()
            if now - looked_at > self._silence_s / 2:
                log.warning("the gateway itself was held up", seconds=round(now - looked_at, 1))
                awake_since = now
            looked_at = now
            self._pending.lose_silent(now, awake_since, self._silence_s)


async def end_tasks(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel until it helps: redis-py may swallow a cancel while it connects."""
    while going_on := [task for task in tasks if not task.done()]:
        for task in going_on:
            task.cancel()
        await asyncio.wait(going_on, timeout=CANCEL_AGAIN_S)
