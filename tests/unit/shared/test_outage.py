"""What is logged of work that fails and is tried again: its beginning, another kind of trouble, its end."""

from __future__ import annotations

import logging

import pytest

from shared.outage import Outage


def test_an_outage_is_told_once_for_each_kind_of_trouble_and_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outage = Outage(logging.getLogger("test"), "the outbox")
    outage.ended()
    for error in (TimeoutError("one"), TimeoutError("two"), OSError("three\nand more"), TimeoutError("four")):
        outage.began(error)
    outage.ended()
    outage.ended()
    outage.began(TimeoutError("five"))
    assert caplog.messages == [
        "the outbox waits, and is tried again until it works: one",
        "the outbox waits, and is tried again until it works: three",
        "the outbox works again",
        "the outbox waits, and is tried again until it works: five",
    ]


def test_a_reason_without_end_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    Outage(logging.getLogger("test"), "the outbox").began(TimeoutError("x" * 5000))
    assert len(caplog.messages[0]) < 400
