"""Frames on their way to gateways: one send per engine step and gateway, whatever the number of streams in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from shared.contracts.inference import Frame
from shared.replies.port import GatewayGone, Replies, RepliesUnavailable

log = structlog.get_logger(__name__)

COALESCE_S = 0.002
BATCH_BYTES = 1 << 20
PENDING_BYTES = 64 << 20
UNDELIVERABLE_S = 10.0
"""A gateway that cannot be reached for so long has given its requests up already."""
RETRY_S = 0.1
FRAME_OVERHEAD_BYTES = 64

OnGone = Callable[[str], None]


class Outbox:
    """Sends frames to gateway addresses. `on_gone(address)` is told when one is given up and its frames are lost."""

    def __init__(self, replies: Replies, on_gone: OnGone) -> None:
        self._replies = replies
        self._on_gone = on_gone
        self._lanes: dict[str, _Lane] = {}
        self._finishing: set[asyncio.Task[None]] = set()

    def put(self, address: str, frame: Frame, *, urgent: bool) -> None:
        """Never blocks. An urgent frame leaves at once and takes along what waits; others wait up to 2 ms for more."""
        lane = self._lanes.get(address)
        if lane is None:
            lane = self._lanes[address] = _Lane(address, self._replies, self._drop)
        lane.put(frame, urgent=urgent)

    def forget(self, address: str) -> None:
        """Nobody there has a request here any more; what waits is still sent."""
        lane = self._lanes.pop(address, None)
        if lane is not None:
            lane.finish()
            self._finishing.add(lane.task)
            lane.task.add_done_callback(self._finishing.discard)

    async def close(self, timeout_s: float = 5) -> None:
        """Send what waits, for so long."""
        for address in list(self._lanes):
            self.forget(address)
        if self._finishing:
            _, late = await asyncio.wait(set(self._finishing), timeout=timeout_s)
            for task in late:
                task.cancel()

    def _drop(self, lane: _Lane) -> None:
        if self._lanes.get(lane.address) is lane:
            del self._lanes[lane.address]
        self._on_gone(lane.address)


class _Lane:
    """The frames for one gateway address, and the task that sends them."""

    def __init__(self, address: str, replies: Replies, on_lost: Callable[[_Lane], None]) -> None:
        self.address = address
        self._replies = replies
        self._on_lost = on_lost
        self._frames: list[Frame] = []
        self._bytes = 0
        self._some = asyncio.Event()
        self._urgent = asyncio.Event()
        self._finishing = False
        self._lost = False
        self.task = asyncio.create_task(self._run())

    def put(self, frame: Frame, *, urgent: bool) -> None:
        if self._lost:
            return
        self._frames.append(frame)
        self._bytes += len(frame.data) + FRAME_OVERHEAD_BYTES
        self._some.set()
        if urgent:
            self._urgent.set()
        if self._bytes > PENDING_BYTES:
            self._give_up("too much waits for a gateway that does not take it")
            self.task.cancel()

    def finish(self) -> None:
        self._finishing = True
        self._some.set()
        self._urgent.set()

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            if self._finishing and not self._frames:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(COALESCE_S):
                    await self._urgent.wait()
            batch = self._take()
            if batch and not await self._delivered(batch):
                return

    def _take(self) -> list[Frame]:
        """What waits, up to a batch's size."""
        size, count = 0, 0
        for frame in self._frames:
            size += len(frame.data) + FRAME_OVERHEAD_BYTES
            count += 1
            if size >= BATCH_BYTES:
                break
        batch, self._frames = self._frames[:count], self._frames[count:]
        self._bytes -= size
        if not self._frames and not self._finishing:
            self._some.clear()
            self._urgent.clear()
        return batch

    async def _delivered(self, batch: list[Frame]) -> bool:
        deadline = asyncio.get_running_loop().time() + UNDELIVERABLE_S
        while True:
            try:
                await self._replies.send(self.address, batch)
                return True
            except GatewayGone:
                self._give_up("the gateway is gone")
                return False
            except RepliesUnavailable as error:
                if asyncio.get_running_loop().time() > deadline:
                    self._give_up(f"replies cannot be delivered: {error}")
                    return False
                await asyncio.sleep(RETRY_S)

    def _give_up(self, why: str) -> None:
        self._lost = True
        self._frames.clear()
        log.warning("gateway_given_up", address=self.address, reason=why)
        self._on_lost(self)
