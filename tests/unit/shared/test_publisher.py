"""A publisher's thread outlives whatever goes wrong in it: every message gets an answer."""

from __future__ import annotations

import pytest

from shared.bus.port import BusUnavailable, Position
from shared.bus.valkey.publisher import Publisher
from shared.contracts.topics import JOBS_EVENTS


def test_a_batch_that_fails_halfway_leaves_the_next_one_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = Publisher("valkey+unix:///nowhere", "test")
    broken = True

    def send(batch: list[object]) -> None:
        nonlocal broken
        batch[0].future.set_result(Position(0, 1))  # type: ignore[attr-defined]
        if broken:
            broken = False
            raise ValueError("halfway")

    monkeypatch.setattr(publisher, "_send", send)
    with publisher._changed:  # both go in one batch
        first = publisher.publish(JOBS_EVENTS, "a", b"1")
        second = publisher.publish(JOBS_EVENTS, "b", b"2")
    assert first.result(10) == Position(0, 1)
    with pytest.raises(BusUnavailable, match="halfway"):
        second.result(10)
    assert publisher.publish(JOBS_EVENTS, "c", b"3").result(10) == Position(0, 1)
    publisher.close()
