"""What the clients make of a gateway that stops in the middle: they go on, and end when the job has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from llmos import LLMOS, AsyncLLMOS, NotConnected


def event(number: int) -> bytes:
    return f"id: {number}\ndata: ".encode() + orjson.dumps({"number": number}) + b"\n\n"


class Cut(httpx.SyncByteStream, httpx.AsyncByteStream):
    """An answer whose connection breaks after what was sent."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self._data
        raise httpx.ReadError("gone")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data
        raise httpx.ReadError("gone")


class Gateway:
    """Streams two events: cut off after the first; ended in order, by its stop, after the second; then nothing more."""

    def __init__(self) -> None:
        self.cursors: list[str | None] = []
        self.looks = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/jobs/j":
            self.looks += 1
            return httpx.Response(200, json={"id": "j", "status": "running" if self.looks == 1 else "succeeded"})
        self.cursors.append(request.headers.get("Last-Event-ID"))
        match self.cursors[-1]:
            case None:
                return httpx.Response(200, stream=Cut(event(1)))
            case "1":
                return httpx.Response(200, content=event(2))
            case _:
                return httpx.Response(200, content=b"")


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def test_a_stream_that_a_stopping_gateway_ends_is_not_the_jobs_end(gateway: Gateway) -> None:
    client = LLMOS("http://here", "sk")
    client._http = httpx.Client(base_url="http://here", transport=httpx.MockTransport(gateway))
    with client:
        assert [item["number"] for item in client.follow_job("j")] == [1, 2]
        assert client.get_job("j")["status"] == "succeeded"
    assert gateway.cursors == [None, "1", "2", "2"]


async def test_the_asyncio_client_goes_on_as_well(gateway: Gateway) -> None:
    client = AsyncLLMOS("http://here", "sk")
    client._http = httpx.AsyncClient(base_url="http://here", transport=httpx.MockTransport(gateway))
    async with client:
        assert [item["number"] async for item in client.follow_logs("j")] == [1, 2]
    assert gateway.cursors == [None, "1", "2", "2"]


def test_a_download_that_is_cut_off_leaves_nothing(tmp_path: Path) -> None:
    client = LLMOS("http://here", "sk")
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Cut(b"half")))
    client._http = httpx.Client(base_url="http://here", transport=transport)
    with client, pytest.raises(NotConnected, match="broke off"):
        client.download("m@1", tmp_path / "m.tar")
    assert list(tmp_path.iterdir()) == []


async def test_the_asyncio_client_downloads_the_same_bytes(tmp_path: Path) -> None:
    client = AsyncLLMOS("http://here", "sk")
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=request.url.path.encode()))
    client._http = httpx.AsyncClient(base_url="http://here", transport=transport)
    async with client:
        await client.download("m@1", tmp_path / "m.tar")
    assert (tmp_path / "m.tar").read_bytes() == b"/v1/artifacts/m@1/download"
