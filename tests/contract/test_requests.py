"""What every carrier of inference requests promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from shared import requests
from shared.contracts.inference import Cancel, Request
from shared.requests.port import Requests, RequestsUnavailable
from shared.settings import SettingsError
from tests.contract.reply_worlds import (
    MORTAL_REQUESTS,
    REQUESTS,
    SERVED_REQUESTS,
    RequestsWorld,
    ServedRequestsWorld,
)
from tests.servers import valkey


def request(name: str, body: bytes = b"{}") -> Request:
    return Request(id=name, attempt=1, path="/v1/completions", body=body, reply_to="gw:1", headers=[(b"a", b"\xff")])


@pytest.fixture(params=REQUESTS)
def world(request: pytest.FixtureRequest) -> Iterator[RequestsWorld]:
    with REQUESTS[request.param]() as world:
        yield world


@pytest.fixture(params=MORTAL_REQUESTS)
def mortal_world(request: pytest.FixtureRequest) -> Iterator[RequestsWorld]:
    with MORTAL_REQUESTS[request.param]() as world:
        yield world


@pytest.fixture(params=SERVED_REQUESTS)
def served_world(request: pytest.FixtureRequest) -> Iterator[ServedRequestsWorld]:
    with SERVED_REQUESTS[request.param]() as world:
        yield world


@pytest.fixture
async def sender(world: RequestsWorld) -> AsyncIterator[Requests]:
    requests = world.connect()
    yield requests
    await requests.close()


@pytest.fixture
async def reader(world: RequestsWorld) -> AsyncIterator[Requests]:
    requests = world.connect()
    yield requests
    await requests.close()


async def take(inbox: AsyncIterator[Request | Cancel], count: int, timeout_s: float = 10) -> list[Request | Cancel]:
    async with asyncio.timeout(timeout_s):
        return [await anext(inbox) for _ in range(count)]


async def test_an_inbox_gets_what_is_sent_to_it_whole_and_in_order(sender: Requests, reader: Requests) -> None:
    items: list[Request | Cancel] = [
        request("1", bytes(range(256))),
        Cancel("1", 1),
        *(request(str(n)) for n in range(2, 300)),
    ]
    async with reader.inbox("replica") as inbox:
        for item in items:
            await sender.send("replica", item)
        assert await take(inbox, len(items)) == items


async def test_an_inbox_gets_nothing_that_is_for_others_or_was_sent_before(sender: Requests, reader: Requests) -> None:
    await sender.send("replica", request("too early"))
    async with reader.inbox("replica") as inbox:
        await sender.send("another", request("for another"))
        await sender.send("replica", request("mine"))
        assert await take(inbox, 1) == [request("mine")]


async def test_sending_to_nobody_says_nothing(sender: Requests) -> None:
    await sender.send("nobody", request("1"))


async def test_a_reader_can_be_cancelled_while_it_waits(sender: Requests, reader: Requests) -> None:
    async with reader.inbox("replica") as inbox:
        waiting = asyncio.create_task(take(inbox, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_an_inbox_goes_on_after_its_server_was_killed(mortal_world: RequestsWorld) -> None:
    sender, reader, server = mortal_world.connect(), mortal_world.connect(), mortal_world.server
    assert server is not None
    async with reader.inbox("replica") as inbox:
        await sender.send("replica", request("before"))
        assert await take(inbox, 1) == [request("before")]
        waiting = asyncio.create_task(take(inbox, 1, timeout_s=60))
        await asyncio.to_thread(server.kill)
        with pytest.raises(RequestsUnavailable, match="did not take"):
            await sender.send("replica", request("away"))
        await asyncio.to_thread(server.start)
        await sender.send("replica", request("after"))
        assert await waiting == [request("after")]
    await sender.close()
    await reader.close()


async def test_an_inbox_goes_on_after_a_flush(served_world: ServedRequestsWorld) -> None:
    carrier = served_world.connect()
    async with carrier.inbox("replica") as inbox:
        await carrier.send("replica", request("before"))
        assert await take(inbox, 1) == [request("before")]
        await asyncio.to_thread(served_world.flush)
        await carrier.send("replica", request("after"))
        assert await take(inbox, 1) == [request("after")]
    await carrier.close()


async def test_an_item_that_does_not_decode_is_skipped(served_world: ServedRequestsWorld) -> None:
    carrier = served_world.connect()
    async with carrier.inbox("replica") as inbox:
        await asyncio.to_thread(served_world.put_raw, "replica", b"\xc1")
        await asyncio.to_thread(served_world.put_raw, "replica", None)
        await carrier.send("replica", request("good"))
        assert await take(inbox, 1) == [request("good")]
    await carrier.close()


async def test_a_long_body_goes_through(sender: Requests, reader: Requests) -> None:
    body = bytes(range(256)) * 2**15  # 8 MiB, the largest that the gateway takes if nothing is said
    async with reader.inbox("replica") as inbox:
        await sender.send("replica", request("long", body))
        assert await take(inbox, 1) == [request("long", body)]


async def test_an_inbox_is_bounded_and_forgotten() -> None:
    with valkey(durable=False) as server, server.client() as client:
        carrier = requests.connect(server.unix_url)
        await carrier.send("nobody", request("1"))
        assert 0 < client.ttl("inbox:nobody") <= 60
        await carrier.close()


@pytest.mark.parametrize("url", ["", "ftp://x", "valkey://x"])
def test_an_address_of_another_kind_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(SettingsError, match="names no server for requests"):
        requests.connect(url)
