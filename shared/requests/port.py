"""Inference requests: addressed to one replica's inbox, not durable, not acknowledged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from shared.contracts.inference import Cancel, Request
from shared.starting import Uninitialized


class RequestsUnavailable(Exception):
    """The server that carries requests does not answer, or did not take one."""


class RequestsUninitialized(RequestsUnavailable, Uninitialized):
    """It answers, and the topic of requests is missing."""


class Requests(Protocol):
    async def send(self, to: str, item: Request | Cancel) -> None:
        """Put into the inbox of replica `to`. Raises RequestsUnavailable; says nothing of whether anyone reads it."""

    def inbox(self, me: str) -> AbstractAsyncContextManager[AsyncIterator[Request | Cancel]]:
        """What is sent to replica `me` from now on, in order. It goes on through losses of the server; an item that
        does not decode is logged and skipped."""

    async def close(self) -> None: ...
