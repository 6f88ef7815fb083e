"""A gateway's inference on a real socket, with the queues a test names, and replicas that do as their script says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import httpx
import openai
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

import shared.replies
import shared.requests
from services.gateway import errors
from services.gateway.inference import InferenceGateway, Shortcut
from services.gateway.keys import Principal
from shared.bus.memory import MemoryBus
from shared.bus.port import Bus
from shared.contracts import topics
from shared.contracts.deployments import ReplicaStatus
from shared.contracts.inference import FrameKind, Request
from shared.replies.memory import MemoryReplyHub
from shared.replies.port import Replies
from shared.requests.memory import MemoryRequests
from shared.requests.port import Requests
from shared.settings import Settings
from tests.serving import TENANT, Script, ScriptedReplica, desired, status
from tests.waiting import aeventually

QUESTION = {"model": "tiny", "prompt": "Hello"}
CHUNK = (
    b'data: {"id":"1","object":"text_completion","created":1,"model":"tiny@1","choices":[{"index":0,"text":"%s"}]}\n\n'
)
WHOLE = b'{"id":"1","object":"text_completion","created":1,"model":"tiny@1","choices":[{"index":0,"text":"Hi"}]}'


class Queues(Protocol):
    """Makes the ends that gateways and replicas hold."""

    def requests(self) -> Requests: ...

    def replies(self) -> Replies: ...


class MemoryQueues:
    """Queues that a test can take away or flush."""

    def __init__(self) -> None:
        self.inboxes = MemoryRequests()
        self.hub = MemoryReplyHub()

    def requests(self) -> Requests:
        return self.inboxes

    def replies(self) -> Replies:
        return self.hub.replies()


class ServedQueues:
    """Queues over servers."""

    def __init__(self, requests_url: str, redis_url: str) -> None:
        self._requests_url = requests_url
        self._redis_url = redis_url

    def requests(self) -> Requests:
        return shared.requests.connect(self._requests_url)

    def replies(self) -> Replies:
        return shared.replies.connect(self._redis_url)


class World:
    """A gateway on a socket, its queues, and the replicas of deployment `tiny` that a test has started."""

    def __init__(self, queues: Queues, settings: Settings, bus: Bus) -> None:
        self.bus = bus
        self.queues = queues
        self.gateway = InferenceGateway(settings, self.bus, queues.requests(), queues.replies())
        self.replicas: dict[str, ScriptedReplica] = {}
        self.stack = AsyncExitStack()
        self.url = ""

    async def replica(self, name: str, script: Script) -> ScriptedReplica:
        """Start a replica and wait until the gateway routes to it."""
        requests, replies = self.queues.requests(), self.queues.replies()
        self.stack.push_async_callback(requests.close)
        self.stack.push_async_callback(replies.close)
        replica = ScriptedReplica(name, requests, replies, script)
        self.replicas[name] = await self.stack.enter_async_context(replica)
        deployment = desired("tiny", "tiny@1", list(self.replicas), version=len(self.replicas))
        self.bus.publish(topics.DEPLOYMENTS_DESIRED, f"{TENANT}/tiny", deployment)
        self.says(status(name, "tiny@1"))
        await aeventually(lambda: name in self.routed(), what=f"routing to {name}")
        return replica

    def says(self, state: ReplicaStatus) -> None:
        self.bus.publish(topics.DEPLOYMENTS_STATUS, state.replica_id, state)

    def routed(self) -> list[str]:
        try:
            return [replica.id for replica in self.gateway._table.resolve(TENANT, "tiny").replicas]
        except errors.ApiError:
            return []

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=30)

    def openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    def open_requests(self) -> int:
        return len(self.gateway._pending.replies)


@asynccontextmanager
async def serve(app: FastAPI) -> AsyncIterator[str]:
    """The app on a free port of this machine."""
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await aeventually(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


class KnowsEveryone:
    """In the place of the middleware that asks for a key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["principal"] = Principal(TENANT, "key")
        await self._app(scope, receive, send)


@asynccontextmanager
async def start_world(
    queues: Queues, *, bus: Bus | None = None, shortcut: bool = True, **settings: Any
) -> AsyncIterator[World]:
    """Served until the block ends. With `shortcut=False` only FastAPI's routes answer."""
    world = World(queues, Settings(**{"replica_silence_s": 0.5, **settings}), bus or MemoryBus())
    app = FastAPI()
    errors.install(app)
    app.include_router(world.gateway.router)
    if shortcut:
        app.add_middleware(Shortcut, answering=world.gateway.answering)
    app.add_middleware(KnowsEveryone)
    async with world.stack, serve(app) as world.url:
        await world.gateway.start()
        await aeventually(lambda: world.gateway.ready() is None)
        try:
            yield world
        finally:
            await world.gateway.stop()
    world.bus.close()


async def answer_whole(replica: ScriptedReplica, request: Request) -> None:
    await replica.answer(request, WHOLE)


async def answer_stream(replica: ScriptedReplica, request: Request) -> None:
    await replica.start(request)
    for word in (b"one", b" two", b" three"):
        await replica.send(request, FrameKind.body, CHUNK % word)
    await replica.send(request, FrameKind.end, b"data: [DONE]\n\n")


async def begin_stream(replica: ScriptedReplica, request: Request) -> None:
    await replica.start(request)
    await replica.send(request, FrameKind.body, CHUNK % b"one")


async def say_nothing(_: ScriptedReplica, __: Request) -> None:
    """As a process that has died: it read the request, and no more."""


async def stay_alive(replica: ScriptedReplica, request: Request) -> None:
    while True:
        await replica.alive(request)
        await asyncio.sleep(0.1)


async def refuse(replica: ScriptedReplica, request: Request) -> None:
    await replica.refuse(request, retry_after_s=6.5)


async def fail(replica: ScriptedReplica, request: Request) -> None:
    await replica.send(request, FrameKind.failed, b"the engine is out of blocks")


def first_tried_says_nothing(then: Script) -> Script:
    """The replica that is asked first says nothing; the one that gets the second attempt does `then`."""

    async def script(replica: ScriptedReplica, request: Request) -> None:
        if request.attempt == 2:
            await then(replica, request)

    return script


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def ask(world: World, **fields: Any) -> httpx.Response:
    async with world.client() as client:
        return await client.post("/v1/completions", json={**QUESTION, **fields})
