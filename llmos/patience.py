"""Transports that wait for a gateway that has answered before: it is being restarted, not absent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx

from shared.backoff import Backoff

PATIENCE_S = 30.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


def _may_repeat(request: httpx.Request, error: httpx.TransportError) -> bool:
    """Whether sending it again does no harm: it never arrived, it only reads, or it carries a key."""
    if isinstance(error, httpx.ConnectError):
        return True
    broken = isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError)
    return broken and (request.method == "GET" or "Idempotency-Key" in request.headers)


def _pauses() -> Iterator[float]:
    backoff, deadline = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S), time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        yield backoff.next_s()


class PatientTransport(httpx.HTTPTransport):
    """Fails at once while nothing has ever answered; afterwards tries again for half a minute."""

    _met = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        pauses = _pauses()
        while True:
            try:
                answer = super().handle_request(request)
            except httpx.TransportError as error:
                pause_s = next(pauses, None) if self._met and _may_repeat(request, error) else None
                if pause_s is None:
                    raise
                time.sleep(pause_s)
            else:
                self._met = True
                return answer


class AsyncPatientTransport(httpx.AsyncHTTPTransport):
    """The same for asyncio."""

    _met = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        pauses = _pauses()
        while True:
            try:
                answer = await super().handle_async_request(request)
            except httpx.TransportError as error:
                pause_s = next(pauses, None) if self._met and _may_repeat(request, error) else None
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
            else:
                self._met = True
                return answer
