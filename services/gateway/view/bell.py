"""Wakes asyncio code from the consumers' threads. Only a hint: whoever waits also looks by itself now and then."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Bell:
    """Rings for names: a job's id, a command's id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listening: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = defaultdict(set)

    def ring(self, names: Iterable[str]) -> None:
        """From any thread."""
        with self._lock:
            rung = [listener for name in set(names) for listener in self._listening.get(name, ())]
        for loop, event in rung:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    @contextmanager
    def listening(self, name: str) -> Iterator[Ear]:
        listener = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._listening[name].add(listener)
        try:
            yield Ear(listener[1])
        finally:
            with self._lock:
                self._listening[name].discard(listener)
                if not self._listening[name]:
                    del self._listening[name]


class Ear:
    """One who listens. A ring between two waits is not missed."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    async def wait(self, timeout_s: float) -> None:
        """Until the bell rings or the time is over."""
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except TimeoutError:
            return
        self._event.clear()
