"""What fails on the way of a request is marked in its trace, and the trace stays one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from services.gateway.tracing import Traced
from services.inference.engines.echo import EchoArgs, EchoEngine
from services.inference.replica.server import Server
from shared.contracts.inference import FrameKind, Request
from shared.replies.memory import MemoryReplyHub
from tests.collector import Recording, recording
from tests.integration.inference_world import (
    QUESTION,
    MemoryQueues,
    World,
    answer_whole,
    begin_stream,
    refuse,
    start_world,
)
from tests.serving import ScriptedReplica
from tests.waiting import aeventually

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def traces() -> Iterator[Recording]:
    with recording() as traces:
        yield traces


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with start_world(MemoryQueues()) as world:
        yield world


async def test_a_second_replica_is_asked_in_the_same_trace(world: World, traces: Recording) -> None:
    async def refuse_first(replica: ScriptedReplica, request: Request) -> None:
        await (refuse if request.attempt == 1 else answer_whole)(replica, request)

    replicas = [await world.replica(name, refuse_first) for name in ("r1", "r2")]
    async with world.client() as client:
        answer = await client.post("/v1/completions", json=QUESTION, headers={"traceparent": PARENT})
    assert answer.status_code == 200
    first, second, whole = traces.arrived()
    assert [first.failed, second.failed, whole.failed] == [True, False, False]
    assert "takes no more requests" in first.reason
    assert {first.parent_id, second.parent_id} == {whole.span_id}
    asked = [request.traceparent for replica in replicas for request in replica.asked]
    assert sorted(filter(None, asked)) == sorted(f"00-{TRACE}-{span.span_id}-01" for span in (first, second))


async def test_a_stream_that_breaks_off_is_a_failure_though_its_status_was_200(world: World, traces: Recording) -> None:
    async def break_off(replica: ScriptedReplica, request: Request) -> None:
        await begin_stream(replica, request)
        await replica.send(request, FrameKind.failed, b"the engine is out of blocks")

    await world.replica("r1", break_off)
    api = world.openai().with_options(default_headers={"traceparent": PARENT})
    with pytest.raises(openai.APIError):
        async for _ in await api.completions.create(model="tiny", prompt="Hello", stream=True):
            pass
    _, whole = traces.arrived()
    assert "the engine is out of blocks" in whole.reason


async def test_an_engine_that_fails_marks_the_replicas_span(traces: Recording) -> None:
    hub = MemoryReplyHub()
    gateway = hub.replies()
    server = Server("r1", EchoEngine("m@1", EchoArgs(fail_on="die")), hub.replies(), max_queue=4)
    address = await gateway.open()
    server.take(Request("a", 1, "/v1/chat/completions", b'{"user": "die"}', address, traceparent=PARENT))
    await aeventually(lambda: server.load == (0, 0))
    await server.close()
    (engine,) = traces.arrived()
    assert (engine.trace_id, engine["replica"], engine["request_id"]) == (TRACE, "r1", "a")
    assert engine.reason.startswith("The engine failed on this request")


async def test_the_routes_that_are_asked_for_ever_begin_no_traces(traces: Recording) -> None:
    app = FastAPI()

    @app.get("/healthz")
    @app.get("/items/{item}")
    def get() -> str:
        return "fine"

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("no")

    app.add_middleware(Traced)
    async with AsyncClient(
        transport=ASGITransport(app, raise_app_exceptions=False), base_url="http://gateway"
    ) as client:
        for path in ("/healthz", "/items/3", "/broken"):
            await client.get(path)
    item, failed = traces.arrived()
    assert (item.name, item.attributes["url.path"], item.failed) == ("GET /items/{item}", "/items/3", False)
    assert (failed.name, failed.failed) == ("GET /broken", True)
    assert item.trace_id != failed.trace_id
