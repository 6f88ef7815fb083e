"""A clock that a test moves."""

from __future__ import annotations

from datetime import datetime, timedelta

from tests.unit.scheduler.jobs import NOW


class FakeClock:
    def __init__(self) -> None:
        self.passed_s = 0.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.passed_s)

    def monotonic(self) -> float:
        return 1000.0 + self.passed_s
