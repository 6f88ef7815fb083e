"""Waiting on conditions instead of on time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T | None], timeout_s: float = 10, what: str = "") -> T:
    """The first truthy value of `condition`. Fails with what was awaited when none comes in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        time.sleep(0.01)
    return value


async def aeventually(condition: Callable[[], T | None], timeout_s: float = 10, what: str = "") -> T:
    """As `eventually`, while the event loop goes on."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        await asyncio.sleep(0.01)
    return value
