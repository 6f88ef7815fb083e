"""Inference over a real Valkey, flushed and killed: open streams end with an error, and the next request works.

The requests go over it too, or over Kafka.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from tests.ground import Ground
from tests.integration.inference_world import (
    WHOLE,
    ServedQueues,
    World,
    answer_stream,
    answer_whole,
    ask,
    begin_stream,
    error_of,
    first_tried_says_nothing,
    start_world,
    stay_alive,
)
from tests.servers import ValkeyServer, valkey
from tests.waiting import aeventually


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with valkey(durable=False) as server:
        yield server


@pytest.fixture
async def world(server: ValkeyServer, ground: Ground) -> AsyncIterator[World]:
    queues = ServedQueues(ground.requests_url or server.unix_url, server.unix_url)
    async with start_world(queues, bus=ground.bus(), replica_silence_s=2) as world:
        yield world


async def test_a_stream_comes_through_valkey(world: World) -> None:
    await world.replica("r1", answer_stream)
    stream = await world.openai().completions.create(model="tiny", prompt="Hello", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "one two three"


async def test_many_answers_come_through_valkey_each_to_its_own(world: World) -> None:
    for name in ("r1", "r2"):
        await world.replica(name, lambda replica, request: replica.answer(request, request.body))
    answers = await asyncio.gather(*(ask(world, n=number) for number in range(40)))
    assert [answer.json()["n"] for answer in answers] == list(range(40))


async def test_a_dead_replica_is_replaced_over_valkey(world: World) -> None:
    for name in ("r1", "r2"):
        await world.replica(name, first_tried_says_nothing(answer_whole))
    assert (await ask(world)).content == WHOLE


async def test_a_client_that_leaves_ends_the_work_over_valkey(world: World) -> None:
    replica = await world.replica("r1", begin_stream)
    stream = await world.openai().completions.create(model="tiny", prompt="Hello", stream=True)
    await anext(aiter(stream))
    await stream.close()
    await asyncio.wait_for(replica.cancels.wait(), 10)


async def test_flushall_ends_open_streams_with_an_error_and_the_next_request_works(
    world: World, server: ValkeyServer
) -> None:
    replica = await world.replica("r1", begin_stream)
    stream = await world.openai().completions.create(model="tiny", prompt="Hello", stream=True)
    chunks = aiter(stream)
    await anext(chunks)
    flushed = world.gateway._pump.address
    with server.client() as client:
        client.flushall()
    with pytest.raises(openai.APIError):
        await anext(chunks)
    replica.script = answer_whole
    await aeventually(lambda: world.gateway._pump.address not in (None, flushed))
    assert (await ask(world)).content == WHOLE


async def test_a_killed_valkey_is_a_503_and_answers_again_when_it_is_back(world: World, server: ValkeyServer) -> None:
    replica = await world.replica("r1", stay_alive)
    asking = asyncio.create_task(ask(world))
    await aeventually(lambda: replica.asked)
    server.kill()
    answer = await asking
    assert (answer.status_code, error_of(answer)["type"]) == (503, "service_unavailable")
    assert (await ask(world)).status_code == 503
    replica.script = answer_whole
    server.start()
    client = world.openai().with_options(max_retries=20)  # as an SDK does, only longer
    assert (await client.completions.create(model="tiny", prompt="Hello")).choices[0].text == "Hi"
