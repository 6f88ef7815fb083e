"""Of several messages each one's own fate is told, and one that fails takes no other along."""

from __future__ import annotations

from concurrent.futures import Future
from typing import cast

import pytest

from shared.bus import publishing
from shared.bus.port import Bus, BusFull, Position
from shared.bus.publishing import publish_all
from shared.contracts.message import Message
from shared.contracts.topics import JOBS_STATE, Topic


class FickleBus:
    """Takes the key `a`, refuses `b`, and never answers for `c`."""

    def publish(self, topic: Topic, key: str, message: Message | None) -> Future[Position]:
        future: Future[Position] = Future()
        if key == "a":
            future.set_result(Position(0, 1))
        elif key == "b":
            future.set_exception(BusFull("full"))
        return future


def test_each_message_has_its_own_fate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "ACK_TIMEOUT_S", 0.01)
    durable, refused, late = publish_all(cast(Bus, FickleBus()), [(JOBS_STATE, key, None) for key in "abc"])
    assert durable is None
    assert isinstance(refused, BusFull)
    assert isinstance(late, TimeoutError)
    assert publish_all(cast(Bus, FickleBus()), []) == []
