"""The adapters of one replica on this node's disk: pulled as they are wanted, held while the replica may read them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from services.inference.control import Wishes
from services.inference.pulling import Puller, PullFailed
from shared.contracts.artifacts import ArtifactPin

log = structlog.get_logger(__name__)

RETRY_S = 10.0


class AdapterFolders:
    """Pulls what is wanted and tells the replica of every folder as soon as it is there."""

    def __init__(self, puller: Puller, on_failed: Callable[[], None]) -> None:
        self._puller = puller
        self._on_failed = on_failed
        self._wanted: dict[str, ArtifactPin] = {}
        self._changed = asyncio.Event()
        self._held: dict[str, Path] = {}
        self.failed: dict[str, str] = {}
        """Ref → why it could not be pulled."""

    @property
    def folders(self) -> dict[str, str]:
        """Ref → folder of those that are wanted and here."""
        return {ref: str(self._held[ref]) for ref in self._wanted if ref in self._held}

    def want(self, adapters: Mapping[str, ArtifactPin]) -> None:
        self._wanted = dict(adapters)
        self._changed.set()

    async def bring(self, adapters: Mapping[str, ArtifactPin], wish: Callable[[Wishes], None]) -> None:
        """Keep a replica supplied until cancelled: now with `adapters`, then with whatever is wanted later.

        Raises what nobody foresaw; a failed pull is told and tried again.
        """
        self.want(adapters)
        while True:
            self._changed.clear()
            pulling = asyncio.create_task(self._pull_all(wish))
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({changed, pulling}, return_when=asyncio.FIRST_COMPLETED)
                if pulling.done():
                    pulling.result()
                await changed
            finally:
                pulling.cancel()
                changed.cancel()
                await asyncio.gather(pulling, changed, return_exceptions=True)

    def release(self) -> None:
        """The replica has ended: it reads none of them any more."""
        while self._held:
            self._puller.release(self._held.popitem()[1])

    async def _pull_all(self, wish: Callable[[Wishes], None]) -> None:
        self.failed = {ref: why for ref, why in self.failed.items() if ref in self._wanted}
        wish(Wishes(self.folders))  # those that are wanted no more go at once
        for ref in [ref for ref in self._held if ref not in self._wanted]:
            self._puller.release(self._held.pop(ref))
        missing = [pin for ref, pin in self._wanted.items() if ref not in self._held]
        while missing:
            missing = [pin for pin in missing if await self._try_again_after(pin, wish)]
            if missing:
                await asyncio.sleep(RETRY_S)

    async def _try_again_after(self, pin: ArtifactPin, wish: Callable[[Wishes], None]) -> bool:
        """Pull one adapter; whether it is still missing and worth another try."""
        try:
            manifest = await self._puller.manifest(pin, _ignore)
            self._held[pin.ref] = await self._puller.pull(pin, manifest.size_bytes, _ignore, _ignore)
        except PullFailed as failure:
            log.warning("adapter_not_pulled", adapter=pin.ref, reason=str(failure))
            self.failed[pin.ref] = str(failure)
            self._on_failed()
            return not failure.final
        if self.failed.pop(pin.ref, None):
            self._on_failed()
        wish(Wishes(self.folders))
        return False


def _ignore(_: object) -> None:
    """An adapter is small: its progress is not told."""
