"""Waiting a little for the view to show what was ordered, so that most answers are final."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from anyio import to_thread

from services.gateway.gateway import Gateway

T = TypeVar("T")
LOOK_EVERY_S = 0.25


async def shown(here: Gateway, name: str, look: Callable[[], T | None], timeout_s: float) -> T | None:
    """What `look` finds as soon as it finds something; None when the time is over. `name` is what the bell rings for.

    Another gateway may be the one that hears the answer, so that we also look by ourselves.
    """
    deadline = time.monotonic() + timeout_s
    with here.view.bell.listening(name) as ear:
        while (found := await to_thread.run_sync(look)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            await ear.wait(min(LOOK_EVERY_S, left))
    return found
