"""The serving loop over queues in memory, with the echo engine in the same process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from services.inference.engines.echo import EchoArgs, EchoEngine
from services.inference.replica import call, outbox
from services.inference.replica.call import FRAME_BYTES
from services.inference.replica.server import Server
from shared.contracts.inference import Cancel, Frame, FrameKind, Refusal, Request
from shared.replies.memory import MemoryReplies, MemoryReplyHub
from shared.requests.memory import MemoryRequests
from tests.waiting import aeventually

LAST = {FrameKind.end, FrameKind.failed, FrameKind.refused}


class Bench:
    """A replica `r1` and a gateway, both in this process."""

    def __init__(self, args: EchoArgs, max_queue: int) -> None:
        self.hub = MemoryReplyHub()
        self.gateway = self.hub.replies()
        self.requests = MemoryRequests()
        self.engine = EchoEngine("m@1", args)
        self.server = Server("r1", self.engine, self.hub.replies(), max_queue)
        self.address = ""
        self.batches: list[Sequence[Frame]] = []

    async def read(self) -> None:
        async for batch in self.gateway.frames():
            self.batches.append(batch)

    def frames(self, request_id: str = "a") -> list[Frame]:
        return [frame for batch in self.batches for frame in batch if frame.request == request_id]

    async def ask(self, request_id: str = "a", attempt: int = 1, user: str = "", **fields: Any) -> None:
        stream, tokens = fields.pop("stream", True), fields.pop("max_tokens", 4)
        body = {"model": "m@1", "messages": [], "stream": stream, "max_tokens": tokens, "user": user}
        fields = {"reply_to": self.address, "path": "/v1/chat/completions", "body": json.dumps(body).encode(), **fields}
        await self.requests.send("r1", Request(id=request_id, attempt=attempt, **fields))

    async def answer(self, request_id: str = "a") -> list[Frame]:
        await aeventually(lambda: any(frame.kind in LAST for frame in self.frames(request_id)))
        return self.frames(request_id)


@asynccontextmanager
async def bench(max_queue: int = 64, **args: Any) -> AsyncIterator[Bench]:
    made = Bench(EchoArgs(**args), max_queue)
    made.address = await made.gateway.open()
    reading = asyncio.create_task(made.read())
    async with made.requests.inbox("r1") as items:
        serving = asyncio.create_task(made.server.serve(items))
        try:
            yield made
        finally:
            serving.cancel()
            reading.cancel()
            await made.server.close()


async def test_frames_are_numbered_from_the_start_to_the_end() -> None:
    async with bench() as replica:
        await replica.ask()
        frames = await replica.answer()
    assert [frame.seq for frame in frames] == list(range(6))
    assert [frame.kind for frame in frames] == [FrameKind.start, *[FrameKind.body] * 4, FrameKind.end]
    status, headers = msgspec.msgpack.decode(frames[0].data)
    assert (status, headers) == (200, [[b"content-type", b"text/event-stream"]])
    assert {frame.replica for frame in frames} == {"r1"}


async def test_the_frames_of_many_streams_leave_in_few_sends() -> None:
    async with bench(delay_s=0.02) as replica:
        for number in range(16):
            await replica.ask(str(number), max_tokens=8)
        await asyncio.gather(*(replica.answer(str(number)) for number in range(16)))
        frames = sum(len(batch) for batch in replica.batches)
        assert frames == 16 * 10
        assert len(replica.batches) < frames / 3


async def test_a_large_body_leaves_in_pieces_that_make_it_whole_again() -> None:
    async with bench() as replica:
        await replica.ask(stream=False, max_tokens=200_000)
        frames = await replica.answer()
    pieces = [frame.data for frame in frames[1:]]
    assert len(pieces) > 2
    assert max(map(len, pieces)) <= FRAME_BYTES
    assert json.loads(b"".join(pieces))["choices"][0]["message"]["content"].endswith(" 199999")


async def test_the_same_attempt_twice_is_served_once_and_another_attempt_again() -> None:
    async with bench() as replica:
        await replica.ask()
        await replica.ask()
        await replica.answer()
        await replica.ask(attempt=2)
        await aeventually(lambda: [f.attempt for f in replica.frames() if f.kind is FrameKind.end] == [1, 2])
    assert len(replica.frames()) == 12


async def test_a_cancel_stops_the_engines_work_and_no_frame_follows() -> None:
    async with bench(delay_s=0.01) as replica:
        await replica.ask(max_tokens=100_000)
        await aeventually(lambda: len(replica.frames()) > 3)
        await replica.requests.send("r1", Cancel("a", 1))
        await aeventually(lambda: replica.engine.working == 0)
        await aeventually(lambda: replica.server.load == (0, 0))
        assert not any(frame.kind in LAST for frame in replica.frames())


async def test_a_cancel_that_overtook_its_request_keeps_it_from_starting() -> None:
    async with bench() as replica:
        await replica.requests.send("r1", Cancel("a", 1))
        await replica.ask()
        await replica.ask("b")
        await replica.answer("b")
        assert replica.frames("a") == []


async def test_a_cancel_right_behind_its_request_leaves_the_replica_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "GRACE_S", 0.01)
    async with bench(delay_s=0.01) as replica:
        request = Request(id="a", attempt=1, path="/v1/completions", body=b"{}", reply_to=replica.address)
        replica.server.take(request)
        replica.server.take(Cancel("a", 1))
        await aeventually(lambda: replica.server.load == (0, 0))
        await replica.ask("b", max_tokens=10)
        assert (await replica.answer("b"))[-1].kind is FrameKind.end
        assert replica.frames("a") == []


async def test_a_deadline_ends_the_answer_with_a_sentence_and_the_work_with_it() -> None:
    async with bench(hang_on="wait") as replica:
        await replica.ask(user="wait", timeout_ms=20)
        frames = await replica.answer()
        assert "20 ms" in frames[-1].data.decode()
        await aeventually(lambda: replica.engine.working == 0)


async def test_cancels_get_through_while_it_is_full() -> None:
    async with bench(max_queue=1, hang_on="wait") as replica:
        await replica.ask(user="wait")
        await replica.ask("b")
        refusal = msgspec.msgpack.decode((await replica.answer("b"))[0].data, type=Refusal)
        assert (refusal.queue, refusal.reason) == (1, "this replica holds 1 requests already")
        await replica.requests.send("r1", Cancel("a", 1))
        await aeventually(lambda: replica.server.load == (0, 0))
        await replica.ask("c")
        assert (await replica.answer("c"))[-1].kind is FrameKind.end


async def test_a_broken_engine_refuses_what_has_not_begun_and_ends_what_has_with_its_reason() -> None:
    async with bench(delay_s=0.01, break_on="break", hang_on="wait") as replica:
        await replica.ask("begun", max_tokens=100_000)
        await replica.ask("waiting", user="wait")
        await aeventually(lambda: replica.frames("begun"))
        await replica.ask("last", user="break")
        refused = [(await replica.answer(request))[0] for request in ("waiting", "last")]
        begun = (await replica.answer("begun"))[-1]
        await asyncio.wait_for(replica.server.broke.wait(), 10)
    refusals = [msgspec.msgpack.decode(frame.data, type=Refusal) for frame in refused]
    assert [(refusal.broken, refusal.reason) for refusal in refusals] == [
        (True, "the echo engine was asked to break")
    ] * 2
    assert (begun.kind, begun.data) == (FrameKind.failed, b"the echo engine was asked to break")


async def test_while_draining_new_requests_are_refused_and_old_ones_finished() -> None:
    async with bench(delay_s=0.01) as replica:
        await replica.ask(max_tokens=10)
        await aeventually(lambda: replica.frames())
        draining = asyncio.create_task(replica.server.drain())
        await aeventually(lambda: replica.server.draining)
        await replica.ask("b")
        assert (await replica.answer("b"))[0].kind is FrameKind.refused
        await asyncio.wait_for(draining, 10)
        assert (await replica.answer("a"))[-1].kind is FrameKind.end


async def test_a_gateway_that_is_gone_frees_what_its_requests_held() -> None:
    async with bench(delay_s=0.01) as replica:
        await replica.ask(max_tokens=100_000)
        await aeventually(lambda: replica.frames())
        replica.hub.flush()
        await aeventually(lambda: replica.engine.working == 0)
        assert replica.server.load == (0, 0)


async def test_replies_that_cannot_be_delivered_are_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "UNDELIVERABLE_S", 0.2)
    async with bench(delay_s=0.01) as replica:
        await replica.ask(max_tokens=100_000)
        await aeventually(lambda: replica.frames())
        replica.hub.away = True
        await aeventually(lambda: replica.engine.working == 0)


async def test_a_short_absence_of_the_server_loses_no_frame() -> None:
    async with bench(delay_s=0.01) as replica:
        await replica.ask(max_tokens=20)
        await aeventually(lambda: replica.frames())
        replica.hub.away = True
        await aeventually(lambda: replica.engine.working == 0)
        replica.hub.away = False
        assert [frame.seq for frame in await replica.answer()] == list(range(22))


async def test_what_waits_for_a_gateway_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "PENDING_BYTES", 10_000)
    async with bench(delay_s=0.001) as replica:
        await replica.ask(max_tokens=100_000)
        await aeventually(lambda: replica.frames())
        replica.hub.away = True
        await aeventually(lambda: replica.engine.working == 0)


async def test_an_engine_that_raises_fails_the_request_with_a_sentence() -> None:
    async with bench(fail_on="die") as replica:
        await replica.ask(user="die")
        frames = await replica.answer()
        assert [frame.kind for frame in frames] == [FrameKind.failed]
        assert "asked to fail" in frames[0].data.decode()


async def test_gateways_that_wait_are_told_that_the_replica_lives() -> None:
    async with bench(hang_on="wait", slots=1) as replica:
        for name in ("a", "b"):
            await replica.ask(name, user="wait")
        other: MemoryReplies = replica.hub.replies()
        await other.open()
        await aeventually(lambda: replica.frames(""))
        alive = replica.frames("")[0]
        assert (alive.kind, alive.replica) == (FrameKind.alive, "r1")
        assert msgspec.msgpack.decode(alive.data) == [1, 1]
