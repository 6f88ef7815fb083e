"""A reader's thread outlives whatever goes wrong in it."""

from __future__ import annotations

import logging
import threading

import pytest

from shared.bus.port import BusUnavailable, IncompatibleBus
from shared.bus.reading import Reader
from shared.contracts.topics import JOBS_EVENTS


class AwayError(Exception):
    """The client's error of this test."""


class Failing(Reader):
    """Fails in every way once, and then reads."""

    def __init__(self) -> None:
        super().__init__("test", JOBS_EVENTS, away=AwayError)
        self.failures = [KeyError("a bug"), IncompatibleBus("a log"), BusUnavailable("away"), AwayError("away")]
        self.reads = threading.Event()

    def session(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.answered()
        self.reads.set()
        self.stopping.wait()


def test_a_reader_that_fails_begins_anew_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmos.bus")
    reader = Failing()
    reader.start()
    assert reader.reads.wait(10)
    reader.close()
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "WARNING", "WARNING", "INFO"]
    assert "a bug" in caplog.text
