"""Replies: the frames of all answers on their way back, on one stream per gateway start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from shared.contracts.inference import Frame


class RepliesLost(Exception):
    """The stream is gone (the server was flushed or restarted): open replies cannot be finished."""


class RepliesUnavailable(Exception):
    """The server that carries replies does not answer now."""


class GatewayGone(Exception):
    """Nobody reads that stream any more: its work can be cancelled."""


class Replies(Protocol):
    async def open(self) -> str:
        """A new address for this gateway start; it lives 30 s and is renewed every 5 s until closed.

        Raises RepliesUnavailable. Called again after RepliesLost it makes a new one.
        """

    def frames(self) -> AsyncIterator[Sequence[Frame]]:
        """The frames sent to the address, as they come. Raises RepliesLost after a flush."""

    async def send(self, to: str, frames: Sequence[Frame]) -> None:
        """All in one step. Raises GatewayGone where the address is not there, RepliesUnavailable on silence."""

    @property
    def away(self) -> bool:
        """Whether the server did not answer when it was last asked. What is on its way may come yet, once it does."""

    async def close(self) -> None: ...
