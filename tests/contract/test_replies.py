"""What every carrier of replies promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from shared import replies
from shared.contracts.inference import Frame, FrameKind
from shared.replies.port import GatewayGone, Replies, RepliesLost, RepliesUnavailable
from shared.settings import SettingsError
from tests.contract.reply_worlds import MORTAL_REPLIES, REPLIES, RepliesWorld
from tests.waiting import aeventually, eventually


def frame(seq: int, data: bytes = b"token") -> Frame:
    return Frame("request", 1, seq, FrameKind.body, data, "replica")


@pytest.fixture(params=REPLIES)
def world(request: pytest.FixtureRequest) -> Iterator[RepliesWorld]:
    with REPLIES[request.param]() as world:
        yield world


@pytest.fixture(params=MORTAL_REPLIES)
def mortal_world(request: pytest.FixtureRequest) -> Iterator[RepliesWorld]:
    with MORTAL_REPLIES[request.param]() as world:
        yield world


@pytest.fixture
async def gateway(world: RepliesWorld) -> AsyncIterator[Replies]:
    end = world.connect()
    yield end
    await end.close()


@pytest.fixture
async def replica(world: RepliesWorld) -> AsyncIterator[Replies]:
    end = world.connect()
    yield end
    await end.close()


async def take(frames: AsyncIterator[Sequence[Frame]], count: int) -> list[Frame]:
    taken: list[Frame] = []
    async with asyncio.timeout(15):
        while len(taken) < count:
            taken += await anext(frames)
    return taken


async def test_frames_arrive_whole_and_in_order(gateway: Replies, replica: Replies) -> None:
    address = await gateway.open()
    sent = [frame(seq, bytes(range(256))) for seq in range(3000)]
    for first in range(0, 3000, 3):
        await replica.send(address, sent[first : first + 3])
    assert await take(gateway.frames(), 3000) == sent


async def test_frames_of_one_send_arrive_together(gateway: Replies, replica: Replies) -> None:
    address = await gateway.open()
    await replica.send(address, [frame(0), frame(1), frame(2)])
    assert await anext(gateway.frames()) == [frame(0), frame(1), frame(2)]


async def test_frames_of_several_replicas_arrive_on_one_stream(world: RepliesWorld, gateway: Replies) -> None:
    address = await gateway.open()
    replicas = [world.connect() for _ in range(3)]
    for seq, replica in enumerate(replicas):
        await replica.send(address, [frame(seq)])
        await replica.close()
    assert {one.seq for one in await take(gateway.frames(), 3)} == {0, 1, 2}


async def test_every_start_has_a_new_address(world: RepliesWorld, gateway: Replies, replica: Replies) -> None:
    other = world.connect()
    first, second, third = await gateway.open(), await other.open(), await gateway.open()
    assert len({first, second, third}) == 3
    with pytest.raises(GatewayGone):
        await replica.send(first, [frame(0)])
    await replica.send(third, [frame(3)])
    assert await take(gateway.frames(), 1) == [frame(3)]
    await other.close()


async def test_a_flush_ends_the_open_replies_and_a_new_stream_can_be_opened(
    world: RepliesWorld, gateway: Replies, replica: Replies
) -> None:
    old = await gateway.open()
    await replica.send(old, [frame(0)])
    frames = gateway.frames()
    assert await take(frames, 1) == [frame(0)]
    world.flush()
    with pytest.raises(GatewayGone):
        await replica.send(old, [frame(1)])
    with pytest.raises(RepliesLost, match="gone"):
        await take(frames, 1)
    new = await gateway.open()
    assert new != old
    await replica.send(new, [frame(2)])
    assert await take(gateway.frames(), 1) == [frame(2)]


async def test_the_work_for_a_closed_gateway_can_be_cancelled(gateway: Replies, replica: Replies) -> None:
    address = await gateway.open()
    frames = gateway.frames()
    waiting = asyncio.create_task(take(frames, 1))
    await asyncio.sleep(0)
    await gateway.close()
    with pytest.raises(GatewayGone):
        await replica.send(address, [frame(0)])
    with pytest.raises(StopAsyncIteration):  # the reader ends, it does not fail
        await waiting


async def test_frames_before_open_is_an_error(gateway: Replies) -> None:
    with pytest.raises(RepliesLost, match="no stream"):
        await anext(gateway.frames())


async def test_a_dead_gateways_stream_expires_and_is_not_made_again(
    mortal_world: RepliesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.replies.valkey.LIVES_S", 1)
    dead, replica = mortal_world.connect(), mortal_world.connect()
    address = await dead.open()
    keeper = next(task for task in asyncio.all_tasks() if address in task.get_name())
    while not keeper.done():  # as a killed process renews no more
        keeper.cancel()
        await asyncio.sleep(0)
    assert mortal_world.server is not None
    with mortal_world.server.client() as client:
        await asyncio.to_thread(eventually, lambda: not client.exists(address))
        with pytest.raises(GatewayGone):
            await replica.send(address, [frame(0)])
        assert not client.exists(address)
    await dead.close()
    await replica.close()


async def test_a_living_stream_is_renewed_and_what_was_read_is_let_go(
    mortal_world: RepliesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.replies.valkey.RENEW_EVERY_S", 0.05)
    gateway, replica = mortal_world.connect(), mortal_world.connect()
    address = await gateway.open()
    for seq in range(2000):
        await replica.send(address, [frame(seq)])
    await take(gateway.frames(), 2000)
    assert mortal_world.server is not None
    with mortal_world.server.client() as client:
        await asyncio.to_thread(eventually, lambda: client.xlen(address) < 200)
        client.expire(address, 10)
        await asyncio.to_thread(eventually, lambda: client.ttl(address) > 20)
    await gateway.close()
    await replica.close()


async def test_a_killed_server_loses_the_replies_and_a_new_stream_can_be_opened(mortal_world: RepliesWorld) -> None:
    gateway, replica, server = mortal_world.connect(), mortal_world.connect(), mortal_world.server
    assert server is not None
    address = await gateway.open()
    waiting = asyncio.create_task(take(gateway.frames(), 1))
    assert not gateway.away
    await asyncio.to_thread(server.kill)
    await aeventually(lambda: gateway.away)
    with pytest.raises(RepliesUnavailable):
        await replica.send(address, [frame(0)])
    other = mortal_world.connect()
    with pytest.raises(RepliesUnavailable):
        await other.open()
    await asyncio.to_thread(server.start)
    with pytest.raises(RepliesLost):
        await waiting
    await replica.send(await gateway.open(), [frame(1)])
    assert await take(gateway.frames(), 1) == [frame(1)]
    assert not gateway.away
    for end in (gateway, replica, other):
        await end.close()


@pytest.mark.parametrize("url", ["", "ftp://x", "kafka://x"])
def test_an_address_of_another_kind_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(SettingsError, match="names no server for replies"):
        replies.connect(url)
