"""A gateway that is being restarted is waited for; one that was never there is not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from llmos.patience import AsyncPatientTransport, PatientTransport


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


class Gateway:
    """A server on a fixed port that can go and come back."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        self._server = HTTPServer(("127.0.0.1", self.port), Answer)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.stop()


def test_a_gateway_that_answered_before_is_waited_for(gateway: Gateway) -> None:
    with httpx.Client(transport=PatientTransport()) as client:
        client.get(gateway.url)
        gateway.stop()
        threading.Timer(0.3, gateway.start).start()
        assert client.get(gateway.url).status_code == 200


async def test_asyncio_waits_as_well(gateway: Gateway) -> None:
    async with httpx.AsyncClient(transport=AsyncPatientTransport()) as client:
        await client.get(gateway.url)
        gateway.stop()
        threading.Timer(0.3, gateway.start).start()
        assert (await client.get(gateway.url)).status_code == 200


def test_a_gateway_that_never_answered_fails_at_once(gateway: Gateway) -> None:
    gateway.stop()
    try:
        with httpx.Client(transport=PatientTransport()) as client, pytest.raises(httpx.ConnectError):
            client.get(gateway.url)
    finally:
        gateway.start()
