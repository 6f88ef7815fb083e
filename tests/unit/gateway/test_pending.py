"""Frames reach the request that waits for them: in order, of the current attempt, and bounded for slow clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from services.gateway.inference import pending as limits
from services.gateway.inference import pump as pump_module
from services.gateway.inference import service
from services.gateway.inference.errors import ClientTooSlow, DeadlinePassed, ReplicaLost, RepliesGone
from services.gateway.inference.pending import Attempt, Pending, Reply
from services.gateway.inference.pump import Pump
from services.gateway.inference.replicas import Replica
from shared.contracts.deployments import ReplicaState
from shared.contracts.inference import Frame, FrameKind
from shared.replies.memory import MemoryReplyHub
from tests.serving import status
from tests.waiting import aeventually

SILENCE_S = 5.0


class Desk:
    """A pump over two replicas, fed by hand."""

    def __init__(self) -> None:
        self.pending = Pending()
        self.replicas = {name: Replica(status(name, "tiny@1"), now=0) for name in ("r1", "r2")}
        self.pump = Pump(MemoryReplyHub().replies(), self.pending, self.replicas)

    def ask(self, replica: str = "r1", number: int = 1, sent_at: float = 0, name: str = "a") -> Reply:
        reply = self.pending.replies.get(name) or self.pending.open(name)
        reply.begin(Attempt(self.replicas[replica], number, f"{replica}-boot-1", sent_at))
        return reply

    def deliver(self, *frames: tuple[int, int, FrameKind, bytes], name: str = "a") -> None:
        self.pump.deliver([Frame(name, attempt, seq, kind, data) for attempt, seq, kind, data in frames])


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_frames_come_in_order_and_together(desk: Desk) -> None:
    reply = desk.ask()
    desk.deliver((1, 0, FrameKind.start, b""), (1, 1, FrameKind.body, b"x"))
    desk.deliver((1, 2, FrameKind.end, b"y"))
    assert [frame.data for frame in await reply.take()] == [b"", b"x", b"y"]
    assert desk.pending.held_bytes == 0


async def test_frames_of_an_old_attempt_and_doubles_are_dropped(desk: Desk) -> None:
    reply = desk.ask("r1", 1)
    desk.ask("r2", 2)
    desk.deliver((1, 0, FrameKind.start, b"old"), (2, 0, FrameKind.start, b"new"), (2, 0, FrameKind.start, b"again"))
    assert [frame.data for frame in await reply.take()] == [b"new"]


async def test_frames_of_a_request_that_nobody_waits_for_are_dropped(desk: Desk) -> None:
    desk.deliver((1, 0, FrameKind.start, b""), name="unknown")


async def test_a_lost_frame_ends_the_answer_after_what_is_there(desk: Desk) -> None:
    reply = desk.ask()
    desk.deliver((1, 0, FrameKind.start, b"a"), (1, 2, FrameKind.body, b"c"), (1, 3, FrameKind.end, b"d"))
    assert [frame.data for frame in await reply.take()] == [b"a"]
    with pytest.raises(ReplicaLost, match="was lost"):
        await reply.take()


async def test_a_client_that_keeps_up_may_receive_any_amount(desk: Desk) -> None:
    reply = desk.ask()
    big = b"x" * limits.REPLY_LIMIT_BYTES
    desk.deliver((1, 0, FrameKind.body, big), (1, 1, FrameKind.body, big), (1, 2, FrameKind.end, big))
    assert len(await reply.take()) == 3


async def test_a_slow_client_is_cut_off_at_its_limit(desk: Desk) -> None:
    reply = desk.ask()
    reply.sending = True
    half = b"x" * (limits.REPLY_LIMIT_BYTES // 2)
    desk.deliver((1, 0, FrameKind.body, half), (1, 1, FrameKind.body, half), (1, 2, FrameKind.body, b"more"))
    with pytest.raises(ClientTooSlow):
        await reply.take()
    assert desk.pending.held_bytes == 0


async def test_slow_clients_together_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TOTAL_LIMIT_BYTES", 10)
    first, second = desk.ask(name="a"), desk.ask(name="b")
    first.sending = second.sending = True
    desk.deliver((1, 0, FrameKind.body, b"123456"), name="a")
    desk.deliver((1, 0, FrameKind.body, b"123456"), name="b")
    assert len(await first.take()) == 1
    with pytest.raises(ClientTooSlow):
        await second.take()


async def test_a_frame_wakes_the_one_who_waits(desk: Desk) -> None:
    reply = desk.ask()
    waiting = asyncio.create_task(reply.take())
    await asyncio.sleep(0)
    desk.deliver((1, 0, FrameKind.start, b""))
    assert len(await waiting) == 1


async def test_a_silent_replica_is_given_up(desk: Desk) -> None:
    reply = desk.ask(sent_at=100)
    desk.pending.lose_silent(now=104, awake_since=0, silence_s=SILENCE_S)
    desk.pending.lose_silent(now=106, awake_since=0, silence_s=SILENCE_S)
    with pytest.raises(ReplicaLost, match="no sign of life"):
        await reply.take()


@pytest.mark.parametrize("sign", ["alive", "status", "frame of another request"])
async def test_a_sign_of_life_keeps_the_request(desk: Desk, sign: str) -> None:
    reply = desk.ask(sent_at=-200)
    desk.ask(name="b", sent_at=-200)
    replica = desk.replicas["r1"]
    replica.heard_at = -200
    now = asyncio.get_running_loop().time()
    if sign == "alive":
        load = msgspec.msgpack.encode((3, 4))
        desk.pump.deliver([Frame("", 0, 0, FrameKind.alive, load, "r1")])
        assert replica.load == 7
    elif sign == "status":
        replica.update(status("r1", "tiny@1", seq=1), now)
    else:
        desk.deliver((1, 0, FrameKind.start, b""), name="b")
    desk.pending.lose_silent(now + 1, awake_since=0, silence_s=SILENCE_S)
    desk.deliver((1, 0, FrameKind.start, b"still here"))
    assert [frame.data for frame in await reply.take()] == [b"still here"]


async def test_time_in_which_the_gateway_could_not_listen_does_not_count(desk: Desk) -> None:
    reply = desk.ask(sent_at=100)
    desk.pending.lose_silent(now=200, awake_since=199, silence_s=SILENCE_S)
    desk.deliver((1, 0, FrameKind.start, b""))
    assert await reply.take()


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (status("r1", "tiny@1", ReplicaState.loading, boot_id="next"), True),
        (status("r1", "tiny@1", ReplicaState.ready, boot_id="next"), True),
        (status("r1", "tiny@1", ReplicaState.failed), True),
        (status("r1", "tiny@1", ReplicaState.draining), False),
        (status("r1", "tiny@1", ReplicaState.ready, seq=9), False),
    ],
)
async def test_a_request_is_lost_with_the_process_that_held_it(desk: Desk, change: object, lost: bool) -> None:
    reply, other = desk.ask(), desk.ask("r2", name="b")
    desk.replicas["r1"].update(change, 0)  # type: ignore[arg-type]
    desk.pending.lose_process(desk.replicas["r1"])
    desk.deliver((1, 0, FrameKind.start, b""))
    desk.deliver((1, 0, FrameKind.start, b""), name="b")
    assert await other.take()
    if lost:
        with pytest.raises(ReplicaLost):
            await reply.take()
    else:
        assert await reply.take()


async def test_a_new_attempt_forgets_a_lost_replica_but_no_passed_deadline(desk: Desk) -> None:
    reply = desk.ask()
    reply.fail(ReplicaLost("gone"))
    desk.ask("r2", 2)
    desk.deliver((2, 0, FrameKind.start, b""))
    assert await reply.take()
    reply.fail(ReplicaLost("gone"))
    reply.fail(DeadlinePassed("too late"))
    desk.ask("r1", 3)
    with pytest.raises(DeadlinePassed):
        await reply.take()


async def test_requests_in_flight_are_counted_where_they_are(desk: Desk) -> None:
    reply = desk.ask("r1", 1)
    assert (desk.replicas["r1"].in_flight, desk.replicas["r2"].in_flight) == (1, 0)
    desk.ask("r2", 2)
    assert (desk.replicas["r1"].in_flight, desk.replicas["r2"].in_flight) == (0, 1)
    desk.pending.close(reply)
    assert (desk.replicas["r1"].in_flight, desk.replicas["r2"].in_flight) == (0, 0)


async def test_a_sign_of_life_that_does_not_decode_harms_nobody(desk: Desk) -> None:
    reply = desk.ask()
    broken = Frame("", 0, 0, FrameKind.alive, b"?", "r1")
    desk.pump.deliver([broken, Frame("a", 1, 0, FrameKind.end, b"x")])
    assert [frame.data for frame in await reply.take()] == [b"x"]


class BrokenOnce:
    """Replies whose first stream fails as no adapter should."""

    def __init__(self) -> None:
        self.opened = 0

    async def open(self) -> str:
        self.opened += 1
        return f"gw:{self.opened}"

    async def frames(self) -> AsyncIterator[list[Frame]]:
        if self.opened == 1:
            raise ValueError("this adapter is broken")
        await asyncio.Event().wait()
        yield []


async def test_the_reader_of_replies_outlives_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "RETRY_S", 0)
    pending = Pending()
    pump = Pump(BrokenOnce(), pending, {})  # type: ignore[arg-type]
    waiting = pending.open("a")
    reading = asyncio.create_task(pump.run())
    with pytest.raises(RepliesGone):
        await waiting.take()
    await aeventually(lambda: pump.address == "gw:2")
    await service.end_tasks([reading])


async def test_a_task_that_swallows_a_cancel_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CANCEL_AGAIN_S", 0.01)
    began, swallowed = asyncio.Event(), 0

    async def stubborn() -> None:
        nonlocal swallowed
        began.set()
        while swallowed < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await began.wait()
    await service.end_tasks([task])
    assert task.cancelled()
