"""Bringing versions from the store into this node's cache, off the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog

from shared.backoff import Backoff
from shared.contracts.artifacts import ArtifactPin, Manifest
from shared.store.cache import ArtifactCache
from shared.store.port import ObjectNotFound, ObjectStore, StoreError, StoreUnavailable
from shared.store.staging import read_manifest

log = structlog.get_logger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0

OnPercent = Callable[[float], None]
OnTrouble = Callable[[str], None]
"""Told why the pull waits; empty when it goes on."""


class PullFailed(Exception):
    """The version cannot be had; `final` says that trying again is of no use."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


class _Stopped(Exception):
    """Nobody waits for this pull any more."""


class Puller:
    """Pulls versions; what it gives is in use, and so not evicted, until released."""

    def __init__(self, store: ObjectStore, cache: ArtifactCache) -> None:
        self._store = store
        self._cache = cache

    async def manifest(self, pin: ArtifactPin, on_trouble: OnTrouble) -> Manifest:
        """What the version is made of. Raises PullFailed; waits while the store is away."""
        return await self._patiently(
            pin, on_trouble, lambda: asyncio.to_thread(read_manifest, self._store, pin.manifest_key)
        )

    async def pull(self, pin: ArtifactPin, size_bytes: int, on_percent: OnPercent, on_trouble: OnTrouble) -> Path:
        """The verified folder with the version's files. Raises PullFailed; waits while the store is away."""
        return await self._patiently(pin, on_trouble, lambda: self._pull_once(pin, size_bytes, on_percent))

    def release(self, folder: Path) -> None:
        self._cache.release(folder)

    async def _pull_once(self, pin: ArtifactPin, size_bytes: int, on_percent: OnPercent) -> Path:
        loop = asyncio.get_running_loop()
        stopped = threading.Event()
        moved, told = 0, -1

        def on_bytes(count: int) -> None:
            nonlocal moved, told
            if stopped.is_set():
                raise _Stopped
            moved += count
            percent = min(99, 100 * moved // max(1, size_bytes))
            if percent > told:
                told = percent
                loop.call_soon_threadsafe(on_percent, float(percent))

        pulling = loop.run_in_executor(None, self._cache.pull, pin.manifest_key, on_bytes)
        try:
            return await asyncio.shield(pulling)
        except asyncio.CancelledError:
            stopped.set()
            pulling.add_done_callback(self._release_unwanted)
            raise

    def _release_unwanted(self, pulling: asyncio.Future[Path]) -> None:
        """Nobody waits for this folder any more, however far its pull came."""
        if not pulling.cancelled() and pulling.exception() is None:
            self._cache.release(pulling.result())

    async def _patiently(self, pin: ArtifactPin, on_trouble: OnTrouble, attempt: Callable[[], Awaitable[T]]) -> T:
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            try:
                result = await attempt()
            except StoreUnavailable as error:
                log.warning("pull_waits", artifact=pin.ref, reason=str(error))
                on_trouble(f"waiting for the object store: {error}")
                await asyncio.sleep(backoff.next_s())
            except ObjectNotFound as error:
                raise PullFailed(f"{pin.ref} is not in the object store: {error}", final=True) from error
            except StoreError as error:  # the disk is full, or bytes came broken: another try may do better
                raise PullFailed(f"{pin.ref} could not be pulled: {error}", final=False) from error
            else:
                on_trouble("")
                return result
