"""The gateway owns a request: whatever becomes of replicas, queues and clients, each request has one clear end.

A real uvicorn on a real socket, the real `openai` client, and replicas that do as their script says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import msgspec
import openai
import pytest

from services.gateway.inference import pending
from services.gateway.inference.dispatch import GRACE_MS
from shared.contracts.deployments import ReplicaState
from shared.contracts.inference import FrameKind, Refusal, Request
from tests.ground import Ground
from tests.integration.inference_world import (
    QUESTION,
    WHOLE,
    MemoryQueues,
    Queues,
    ServedQueues,
    World,
    answer_stream,
    answer_whole,
    ask,
    begin_stream,
    error_of,
    fail,
    first_tried_says_nothing,
    refuse,
    say_nothing,
    start_world,
    stay_alive,
)
from tests.servers import ValkeyServer, valkey
from tests.serving import TENANT, ScriptedReplica, status
from tests.waiting import aeventually


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with valkey(durable=False) as server:
        yield server


@pytest.fixture
def queues(ground: Ground, request: pytest.FixtureRequest) -> Queues:
    """In memory, or requests over Kafka and replies over Valkey."""
    if not ground.requests_url:
        return MemoryQueues()
    server: ValkeyServer = request.getfixturevalue("server")
    return ServedQueues(ground.requests_url, server.unix_url)


@pytest.fixture
async def world(queues: Queues, ground: Ground) -> AsyncIterator[World]:
    silence_s = 2.0 if ground.requests_url else 0.5
    async with start_world(queues, bus=ground.bus(), replica_silence_s=silence_s) as world:
        yield world


in_memory = pytest.mark.parametrize("ground", ["memory"], indirect=True)
"""For what only queues in memory do at a word. Over servers: test_gateway_inference_valkey.py."""


# What is asked and answered


async def test_an_answer_comes_back_whole_and_the_body_goes_through(world: World) -> None:
    replica = await world.replica("r1", answer_whole)
    answer = await ask(world, seed=7, a_field_of_tomorrow={"x": [1.5]})
    assert (answer.status_code, answer.content) == (200, WHOLE)
    assert answer.headers["content-type"] == "application/json"
    [request] = replica.asked
    sent = json.loads(request.body)
    assert sent == {**QUESTION, "model": "tiny@1", "seed": 7, "a_field_of_tomorrow": {"x": [1.5]}}
    assert answer.headers["x-request-id"] == request.id
    assert (request.path, request.tenant, request.attempt) == ("/v1/completions", TENANT, 1)
    assert replica.cancelled == []


async def test_the_openai_client_streams_through_the_queue(world: World) -> None:
    await world.replica("r1", answer_stream)
    stream = await world.openai().completions.create(model="tiny", prompt="Hello", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "one two three"


async def test_the_synchronous_openai_client_works(world: World) -> None:
    await world.replica("r1", answer_whole)
    client = openai.OpenAI(base_url=f"{world.url}/v1", api_key="any", max_retries=0)
    completion = await asyncio.to_thread(client.completions.create, model="tiny@1", prompt="Hello")
    assert completion.choices[0].text == "Hi"


async def test_frames_reach_the_client_as_they_come(world: World) -> None:
    go_on = asyncio.Event()

    async def script(replica: ScriptedReplica, request: Request) -> None:
        await begin_stream(replica, request)
        await go_on.wait()
        await replica.send(request, FrameKind.end, b"data: [DONE]\n\n")

    await world.replica("r1", script)
    stream = await world.openai().completions.create(model="tiny", prompt="Hello", stream=True)
    chunks = aiter(stream)
    assert (await anext(chunks)).choices[0].text == "one"
    go_on.set()
    assert [chunk async for chunk in chunks] == []


async def test_an_engines_own_error_passes_as_it_is(world: World) -> None:
    async def script(replica: ScriptedReplica, request: Request) -> None:
        await replica.start(request, status=400, content_type="application/json")
        await replica.send(request, FrameKind.end, b'{"error": {"message": "max_tokens is too large"}}')

    await world.replica("r1", script)
    answer = await ask(world)
    assert answer.status_code == 400
    assert "max_tokens is too large" in answer.text


async def test_what_the_engines_web_framework_refuses_comes_in_the_envelope(world: World) -> None:
    async def script(replica: ScriptedReplica, request: Request) -> None:
        await replica.start(request, status=400, content_type="application/json")
        await replica.send(request, FrameKind.end, b'{"detail":"There was an error parsing the body"}')

    await world.replica("r1", script)
    answer = await ask(world)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "The engine refused: There was an error parsing the body"


async def test_a_route_that_the_model_does_not_have_is_an_error_like_any_other(world: World) -> None:
    async def script(replica: ScriptedReplica, request: Request) -> None:
        await replica.start(request, status=404, content_type="application/json")
        await replica.send(request, FrameKind.end, b'{"detail":"Not Found"}')

    await world.replica("r1", script)
    with pytest.raises(openai.NotFoundError) as raised:
        await world.openai().embeddings.create(model="tiny", input="Hello")
    assert raised.value.code == "not_offered"


async def test_an_answer_larger_than_the_bound_on_slow_clients_comes_whole(world: World) -> None:
    pieces = [bytes([65 + number]) * 700_000 for number in range(5)]

    async def script(replica: ScriptedReplica, request: Request) -> None:
        await replica.start(request, content_type="application/json")
        for piece in pieces[:-1]:
            await replica.send(request, FrameKind.body, piece)
        await replica.send(request, FrameKind.end, pieces[-1])

    await world.replica("r1", script)
    assert (await ask(world)).content == b"".join(pieces)


async def test_many_requests_at_once_get_each_its_own_answer(world: World) -> None:
    async def script(replica: ScriptedReplica, request: Request) -> None:
        await replica.answer(request, request.body)

    await world.replica("r1", script)
    await world.replica("r2", script)
    async with world.client() as client:
        asked = [client.post("/v1/completions", json={**QUESTION, "n": number}) for number in range(50)]
        answers = await asyncio.gather(*asked)
    assert [answer.json()["n"] for answer in answers] == list(range(50))
    assert all(replica.asked for replica in world.replicas.values())
    assert {replica.in_flight for replica in world.gateway._table.replicas.values()} == {0}


async def test_predict_asks_a_completion(world: World) -> None:
    await world.replica("r1", answer_whole)
    async with world.client() as client:
        answer = await client.post("/predict", json={"model_id": "tiny", "input": "Hello"})
    assert answer.json() == {"model_id": "tiny@1", "output": "Hi", "usage": None}


async def test_the_documented_routes_answer_as_the_shortcut_does() -> None:
    async with start_world(MemoryQueues(), shortcut=False) as world:
        await world.replica("r1", answer_stream)
        stream = await world.openai().completions.create(model="tiny", prompt="Hello", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "one two three"
        answer = await ask(world, model="gpt-9")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


# Bad input


@pytest.mark.parametrize(
    ("raw", "param"), [(b"{", None), (b"[]", None), (b"", None), (b"{}", "model"), (b'{"model": 1}', "model")]
)
async def test_a_bad_body_is_a_400_that_names_it(world: World, raw: bytes, param: str | None) -> None:
    async with world.client() as client:
        answer = await client.post("/v1/chat/completions", content=raw)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


async def test_an_unknown_model_is_not_found(world: World) -> None:
    await world.replica("r1", answer_whole)
    with pytest.raises(openai.NotFoundError, match=r"Served now: tiny, tiny@1") as raised:
        await world.openai().chat.completions.create(model="gpt-9", messages=[])
    assert raised.value.code == "model_not_found"


async def test_a_loading_model_says_how_far_it_is_and_when_to_come_again(world: World) -> None:
    await world.replica("r1", answer_whole)
    world.says(status("r1", "tiny@1", ReplicaState.loading, boot_id="next", percent=35))
    await aeventually(lambda: not world.routed())
    answer = await ask(world)
    assert answer.status_code == 503
    assert "35 %" in error_of(answer)["message"]
    assert int(answer.headers["retry-after"]) >= 1


# Replicas that die, refuse, fail


async def test_a_replica_dead_before_its_first_frame_is_replaced_by_another(world: World) -> None:
    for name in ("r1", "r2"):
        await world.replica(name, first_tried_says_nothing(answer_whole))
    answer = await ask(world)
    assert (answer.status_code, answer.content) == (200, WHOLE)
    dead, alive = sorted(world.replicas.values(), key=lambda replica: replica.asked[0].attempt)
    assert [request.attempt for request in (*dead.asked, *alive.asked)] == [1, 2]
    assert dead.asked[0].id == alive.asked[0].id
    await aeventually(lambda: [cancel.attempt for cancel in dead.cancelled] == [1])


async def test_words_of_the_first_attempt_do_not_mix_with_the_second(world: World) -> None:
    first: list[tuple[ScriptedReplica, Request]] = []

    async def script(replica: ScriptedReplica, request: Request) -> None:
        if request.attempt == 1:
            first.append((replica, request))
            return
        slow, old = first[0]
        await slow.answer(old, b"too late")
        await replica.answer(request, WHOLE)

    await world.replica("r1", script)
    await world.replica("r2", script)
    assert (await ask(world)).content == WHOLE


async def test_after_two_dead_replicas_comes_a_503(world: World) -> None:
    for name in ("r1", "r2", "r3"):
        await world.replica(name, say_nothing)
    answer = await ask(world)
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "replica_lost"
    assert sorted(request.attempt for replica in world.replicas.values() for request in replica.asked) == [1, 2]


async def test_a_dead_replica_without_another_is_a_503(world: World) -> None:
    await world.replica("r1", say_nothing)
    assert error_of(await ask(world))["code"] == "replica_lost"


@pytest.mark.parametrize("replicas", [1, 2])
async def test_a_broken_replica_is_replaced_by_another_or_is_a_503_with_its_reason(world: World, replicas: int) -> None:
    async def script(replica: ScriptedReplica, request: Request) -> None:
        if request.attempt == 2:
            return await answer_whole(replica, request)
        refusal = Refusal("its engine has stopped: no such kernel", 0, 5, broken=True)
        return await replica.send(request, FrameKind.refused, msgspec.msgpack.encode(refusal))

    for number in range(replicas):
        await world.replica(f"r{number}", script)
    answer = await ask(world)
    assert answer.status_code == (200 if replicas == 2 else 503)
    if replicas == 1:
        assert error_of(answer)["code"] == "replica_lost"
        assert "no such kernel" in error_of(answer)["message"]
        assert answer.headers["retry-after"] == "5"


async def test_a_busy_replica_that_gives_signs_of_life_is_waited_for(world: World) -> None:
    async def script(replica: ScriptedReplica, request: Request) -> None:
        for _ in range(12):  # more than the silence allowed
            await replica.alive(request)
            await asyncio.sleep(0.1)
        await replica.answer(request, WHOLE)

    await world.replica("r1", script)
    await world.replica("r2", script)
    assert (await ask(world)).status_code == 200
    assert sum(len(replica.asked) for replica in world.replicas.values()) == 1


async def test_a_replica_known_to_have_restarted_is_not_waited_for() -> None:
    async with start_world(MemoryQueues(), replica_silence_s=60) as world:
        for name in ("r1", "r2"):
            await world.replica(name, first_tried_says_nothing(answer_whole))
        asking = asyncio.create_task(ask(world))
        await aeventually(lambda: any(replica.asked for replica in world.replicas.values()))
        [name] = [replica.id for replica in world.replicas.values() if replica.asked]
        world.says(status(name, "tiny@1", ReplicaState.loading, boot_id="next"))
        assert (await asking).status_code == 200


async def test_a_replica_dead_in_the_middle_ends_the_stream_with_an_error_event(world: World) -> None:
    await world.replica("r1", begin_stream)
    stream = await world.openai().completions.create(model="tiny", prompt="Hello", stream=True)
    chunks = aiter(stream)
    assert (await anext(chunks)).choices[0].text == "one"
    with pytest.raises(openai.APIError, match="no sign of life"):
        await anext(chunks)


async def test_a_replica_dead_in_the_middle_of_a_whole_answer_is_a_503(world: World) -> None:
    async def script(replica: ScriptedReplica, request: Request) -> None:
        await replica.start(request, content_type="application/json")
        await replica.send(request, FrameKind.body, b'{"half": ')

    await world.replica("r1", script)
    answer = await ask(world)
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "replica_lost"


async def test_a_refusal_goes_to_one_other_and_then_to_the_client(world: World) -> None:
    for name in ("r1", "r2", "r3"):
        await world.replica(name, refuse)
    answer = await ask(world)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "7"
    assert "its queue is full" in error_of(answer)["message"]
    assert sum(len(replica.asked) for replica in world.replicas.values()) == 2
    assert not any(replica.cancelled for replica in world.replicas.values())


async def test_a_refusal_of_one_is_an_answer_of_another(world: World) -> None:
    async def script(replica: ScriptedReplica, request: Request) -> None:
        await (refuse if request.attempt == 1 else answer_whole)(replica, request)

    await world.replica("r1", script)
    await world.replica("r2", script)
    assert (await ask(world)).content == WHOLE


async def test_a_failure_says_what_the_replica_said(world: World) -> None:
    await world.replica("r1", fail)
    await world.replica("r2", fail)
    answer = await ask(world)
    assert answer.status_code == 502
    assert "out of blocks" in error_of(answer)["message"]
    assert sum(len(replica.asked) for replica in world.replicas.values()) == 1


async def test_a_failure_in_the_middle_ends_the_stream_with_an_error_event(world: World) -> None:
    async def script(replica: ScriptedReplica, request: Request) -> None:
        await begin_stream(replica, request)
        await fail(replica, request)

    await world.replica("r1", script)
    events = (await ask(world, stream=True)).text.strip().split("\n\n")
    assert len(events) == 2
    assert "out of blocks" in json.loads(events[-1].removeprefix("data: "))["error"]["message"]


# Clients


async def hang_up_after(world: World, what: Callable[[asyncio.StreamReader], Awaitable[object]]) -> None:
    """Ask on a bare socket, do `what`, and close it."""
    reader, writer = await asyncio.open_connection(*world.url.removeprefix("http://").split(":"))
    body = json.dumps({**QUESTION, "stream": True}).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()
    await what(reader)
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_leaves_in_the_middle_ends_the_work(world: World) -> None:
    replica = await world.replica("r1", begin_stream)
    await hang_up_after(world, lambda reader: reader.readuntil(b"one"))
    await asyncio.wait_for(replica.cancels.wait(), 10)
    assert replica.cancelled[0].id == replica.asked[0].id
    await aeventually(lambda: world.open_requests() == 0)


async def test_a_client_that_leaves_before_the_first_word_ends_the_work(world: World) -> None:
    replica = await world.replica("r1", stay_alive)
    await hang_up_after(world, lambda _: aeventually(lambda: replica.asked))
    await asyncio.wait_for(replica.cancels.wait(), 10)
    await aeventually(lambda: world.open_requests() == 0)


async def test_the_openai_client_cancels_by_closing_its_stream(world: World) -> None:
    replica = await world.replica("r1", begin_stream)
    stream = await world.openai().completions.create(model="tiny", prompt="Hello", stream=True)
    await anext(aiter(stream))
    await stream.close()
    await asyncio.wait_for(replica.cancels.wait(), 10)


async def test_a_passed_deadline_is_a_504_and_ends_the_work(world: World) -> None:
    replica = await world.replica("r1", stay_alive)
    async with world.client() as client:
        answer = await client.post("/v1/completions", json=QUESTION, headers={"x-request-timeout-ms": "300"})
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "deadline_passed"
    await asyncio.wait_for(replica.cancels.wait(), 10)
    assert replica.asked[0].timeout_ms is not None
    assert 0 < replica.asked[0].timeout_ms - GRACE_MS <= 300


async def test_a_deadline_in_the_middle_ends_the_stream_with_an_error_event(world: World) -> None:
    async def script(replica: ScriptedReplica, request: Request) -> None:
        await begin_stream(replica, request)
        await stay_alive(replica, request)

    await world.replica("r1", script)
    async with world.client() as client:
        answer = await client.post(
            "/v1/completions", json={**QUESTION, "stream": True}, headers={"x-request-timeout-ms": "300"}
        )
    assert "deadline_passed" in answer.text.split("\n\n")[1]


async def test_a_deadline_that_is_no_number_is_a_400(world: World) -> None:
    async with world.client() as client:
        answer = await client.post("/v1/completions", json=QUESTION, headers={"x-request-timeout-ms": "soon"})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "x-request-timeout-ms")


async def test_a_client_that_does_not_read_is_cut_off_and_holds_no_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "FAREWELL_S", 0.2)

    async def script(replica: ScriptedReplica, request: Request) -> None:
        await replica.start(request)
        while not replica.cancels.is_set():
            await replica.send(request, FrameKind.body, b"data: %s\n\n" % (b"x" * 100_000))
            await asyncio.sleep(0.001)

    replica = await world.replica("r1", script)
    await hang_up_after(world, lambda _: replica.cancels.wait())
    await aeventually(lambda: world.open_requests() == 0)
    assert world.gateway._pending.held_bytes == 0


async def test_a_slow_client_that_reads_on_is_told_why_its_answer_ended(world: World) -> None:
    async def script(replica: ScriptedReplica, request: Request) -> None:
        await replica.start(request)
        while not cut_off():
            await replica.send(request, FrameKind.body, b"data: %s\n\n" % (b"x" * 100_000))
            await asyncio.sleep(0.001)

    def cut_off() -> bool:
        return any(reply._failure for reply in world.gateway._pending.replies.values())

    async def read_late(reader: asyncio.StreamReader) -> None:
        await aeventually(cut_off)
        seen = b""
        while b"client_too_slow" not in seen:
            more = await asyncio.wait_for(reader.read(2**20), 10)
            assert more, "the stream ended without its error"
            seen = seen[-100:] + more

    await world.replica("r1", script)
    await hang_up_after(world, read_late)


# Queues that go away


@in_memory
async def test_a_flush_ends_open_streams_with_an_error_and_the_next_request_works(
    world: World, queues: MemoryQueues
) -> None:
    await world.replica("r1", begin_stream)
    stream = await world.openai().completions.create(model="tiny", prompt="Hello", stream=True)
    chunks = aiter(stream)
    await anext(chunks)
    old = world.gateway._pump.address
    queues.hub.flush()
    with pytest.raises(openai.APIError, match="lost the answer"):
        await anext(chunks)
    world.replicas["r1"].script = answer_whole
    await aeventually(lambda: world.gateway._pump.address not in (None, old))
    assert (await ask(world)).status_code == 200


@in_memory
async def test_a_flush_before_the_first_frame_is_a_503(world: World, queues: MemoryQueues) -> None:
    replica = await world.replica("r1", stay_alive)
    asking = asyncio.create_task(ask(world))
    await aeventually(lambda: replica.asked)
    queues.hub.flush()
    answer = await asking
    assert (answer.status_code, error_of(answer)["code"]) == (503, "replies_lost")


@in_memory
async def test_replies_away_are_a_503_until_they_are_back(world: World, queues: MemoryQueues) -> None:
    await world.replica("r1", answer_whole)
    queues.hub.away = True
    queues.hub.flush()
    await aeventually(lambda: world.gateway.ready() is not None)
    answer = await ask(world)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "queue_unavailable")
    queues.hub.away = False
    await aeventually(lambda: world.gateway.ready() is None)
    assert (await ask(world)).status_code == 200


@in_memory
async def test_no_replica_is_asked_while_its_answer_has_no_way_back(world: World, queues: MemoryQueues) -> None:
    """The stream may still be there when the server is back: what is on its way waits for that, what comes does not."""
    replica = await world.replica("r1", stay_alive)
    asking = asyncio.create_task(ask(world))
    await aeventually(lambda: replica.asked)
    queues.hub.away = True
    answer = await ask(world)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "queue_unavailable")
    assert len(replica.asked) == 1
    assert not asking.done()
    queues.hub.away = False
    await replica.answer(replica.asked[0], WHOLE)
    assert (await asking).content == WHOLE


@in_memory
async def test_requests_away_are_a_503(world: World, queues: MemoryQueues) -> None:
    await world.replica("r1", answer_whole)
    queues.inboxes.away = True
    answer = await ask(world)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "queue_unavailable")
    assert answer.headers["retry-after"] == "1"
