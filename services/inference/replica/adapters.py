"""Bringing an engine's adapters to what the agent wants, one at a time, without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from services.inference.control import MAX_ADAPTER_REASON
from services.inference.engines import AdapterRefused, Engine

log = structlog.get_logger(__name__)


class Adapters:
    """The adapters of one engine. `on_change` is called after each that was loaded, unloaded or refused."""

    def __init__(self, engine: Engine, on_change: Callable[[], None]) -> None:
        self._engine = engine
        self._on_change = on_change
        self._wanted: dict[str, str] = {}
        self._changed = asyncio.Event()
        self.loaded: dict[str, None] = {}
        self.failed: dict[str, str] = {}

    def want(self, adapters: Mapping[str, str]) -> None:
        """From now on these, and no other."""
        self._wanted = dict(adapters)
        self._changed.set()

    async def converge(self) -> None:
        """Bring the engine to what is wanted now. One that is refused is not tried again until it was unwanted."""
        for ref in [ref for ref in self.loaded if ref not in self._wanted]:
            await self._unload(ref)
        for ref in [ref for ref in self.failed if ref not in self._wanted]:
            del self.failed[ref]
            self._on_change()
        for ref in [ref for ref in self._wanted if ref not in self.loaded and ref not in self.failed]:
            await self._load(ref, Path(self._wanted[ref]))

    async def run(self) -> None:
        """Converge at every change."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self.converge()

    async def _load(self, ref: str, folder: Path) -> None:
        try:
            await self._engine.load_adapter(ref, folder)
            self.loaded[ref] = None
            log.info("adapter_loaded", adapter=ref)
        except AdapterRefused as error:
            self.failed[ref] = str(error)[:MAX_ADAPTER_REASON]
            log.warning("adapter_refused", adapter=ref, reason=str(error))
        self._on_change()

    async def _unload(self, ref: str) -> None:
        try:
            await self._engine.unload_adapter(ref)
        except AdapterRefused as error:
            log.warning("adapter_not_unloaded", adapter=ref, reason=str(error))
        del self.loaded[ref]
        self._on_change()
