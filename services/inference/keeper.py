"""Keeps one replica of this node as its deployment wants it: pull, start, watch, start again, drain, end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from services.inference.adapter_folders import AdapterFolders
from services.inference.control import Phase, ReplicaSpec, Report, Wishes
from services.inference.domain import WELL_AFTER_S, Seat, memory_needed, pause_s, reason_from_log, too_big
from services.inference.leftovers import Leftovers
from services.inference.process import Launch, Process
from services.inference.pulling import Puller, PullFailed
from services.inference.standing import Standing
from shared.contracts.deployments import ReplicaState
from shared.contracts.nodes import Capacity
from shared.settings import Settings

log = structlog.get_logger(__name__)

SILENCE_S = 60.0
"""A ready replica reports every two seconds; one that has said nothing for so long hangs."""
WATCH_S = 0.5
LAST_WORDS_S = 2.0

T = TypeVar("T")


class Crashed(Exception):
    """This life of the replica is over; another may go better."""


class Broken(Exception):
    """It cannot work as its deployment wants it: no further start before that changes."""


class Interrupted(Exception):
    """Something else is wanted now."""


@dataclass(frozen=True)
class Node:
    """What keepers of one node share."""

    settings: Settings
    capacity: Capacity
    puller: Puller
    launch: Launch
    leftovers: Leftovers
    available_bytes: Callable[[], int]
    """Main memory that is free now."""


class Keeper:
    """One replica. `change` and `retire` say what is wanted; `run` brings it about and returns when it is retired."""

    def __init__(self, seat: Seat, node: Node, standing: Standing) -> None:
        self.seat = seat
        self._node = node
        self._standing = standing
        self._crashes = 0
        self._retired = False
        self._news = asyncio.Event()
        self._end_life = asyncio.Event()
        self._adapters = AdapterFolders(node.puller, self._adapters_told)
        self._well_since: float | None = None
        self._heard_at = 0.0
        self._broken = self._crashed = ""

    def change(self, seat: Seat) -> None:
        """The deployment wants this now. Only adapters changed: without a restart."""
        if seat == self.seat:
            return
        if not seat.same_process(self.seat):
            self._end_life.set()
        self.seat = seat
        self._standing.seat = seat
        self._adapters.want(seat.adapters)
        self._news.set()

    def retire(self) -> None:
        """Drain and end it."""
        self._retired = True
        self._end_life.set()
        self._news.set()

    async def run(self) -> None:
        """Live after live until retired; the last word is `stopped`."""
        while not self._retired:
            self._end_life.clear()
            try:
                await self._live(self.seat)
            except Interrupted:
                continue
            except Broken as end:
                await self._stay_failed(str(end))
            except Crashed as end:
                await self._after_crash(str(end))
            except Exception as error:  # nobody foresaw it, and it counts too: else it would come again for ever
                log.error("replica_life_failed", replica=self.seat.replica_id, exc_info=error)
                await self._after_crash(f"its agent failed to keep it: {type(error).__name__}: {error}")
        self._standing.say(ReplicaState.stopped)

    async def _live(self, seat: Seat) -> None:
        """One life: from the pull to the end of the process. Raises how it ended."""
        folder = await self._pull(seat)
        try:
            process = await self._start(seat, folder)
            try:
                await self._attend(seat, process)
            finally:
                await process.kill()
                process.close()
                self._adapters.release()
        finally:
            self._node.puller.release(folder)

    async def _pull(self, seat: Seat) -> Path:
        """The model's folder, in use until released. What can never fit is refused before a byte is pulled."""
        self._standing.begin_life()
        self._standing.say(ReplicaState.pulling, percent=0.0)
        pin, puller = seat.spec.model, self._node.puller
        try:
            manifest = await self._unless_ended(puller.manifest(pin, self._trouble))
            if reason := too_big(manifest, seat, self._node.capacity):
                raise Broken(reason)
            folder = await self._unless_ended(puller.pull(pin, manifest.size_bytes, self._pulled, self._trouble))
        except PullFailed as failure:
            raise (Broken if failure.final else Crashed)(str(failure)) from failure
        need, free = memory_needed(manifest, seat), self._node.available_bytes()
        if need > free:
            puller.release(folder)
            raise Crashed(
                f"{pin.ref} needs about {need / 2**30:.1f} GiB of memory with its cache, and of this node's only "
                f"{free / 2**30:.1f} GiB are free now; stop something else or deploy a smaller model"
            )
        return folder

    async def _start(self, seat: Seat, folder: Path) -> Process:
        self._well_since, self._broken, self._crashed = None, "", ""
        self._heard_at = self._now()
        self._standing.say(ReplicaState.loading, percent=0.0)
        try:
            process = await self._node.launch(self._spec(seat, folder))
        except OSError as error:
            raise Crashed(f"the replica's process could not be started: {error}") from error
        self._node.leftovers.note(seat.replica_id, process.pid)
        log.info("replica_started", replica=seat.replica_id, pid=process.pid, model=seat.spec.model.ref)
        return process

    async def _attend(self, seat: Seat, process: Process) -> None:
        """Watch a started process until it ends or something else is wanted."""
        hearing = asyncio.create_task(self._hear(process))
        ended = asyncio.create_task(process.ended())
        asked = asyncio.create_task(self._end_life.wait())
        watch = asyncio.create_task(self._watch(process))
        adapters = asyncio.create_task(self._adapters.bring(seat.adapters, process.wish))
        tasks = {hearing, ended, asked, watch, adapters}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if hearing.done():  # mostly because the process ends
                await asyncio.wait({ended}, timeout=LAST_WORDS_S)
            if ended.done():
                await process.kill()  # what it started, which would keep the line open
                await asyncio.wait({hearing}, timeout=LAST_WORDS_S)
                self._judge(reason_from_log(process.log_tail(), ended.result()))
            if hearing.done() and not asked.done():
                self._judge(f"its line broke: {hearing.exception() or 'the replica closed it'}")
            for failed in (watch, adapters):
                if failed.done():
                    failed.result()
            adapters.cancel()
            await self._drain(process, ended)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        raise Interrupted

    def _judge(self, ending: str) -> None:
        """Raises why its life is over: for the reason that it gave itself, or else for how it ended."""
        if self._broken:
            raise Broken(self._broken)
        raise Crashed(self._crashed or ending)

    async def _drain(self, process: Process, ended: asyncio.Task[int]) -> None:
        self._standing.say(ReplicaState.draining)
        if self._well_since is not None:
            process.wish(Wishes(self._adapters.folders, drain=True))
            await asyncio.wait({ended}, timeout=self._node.settings.drain_timeout_s)

    async def _hear(self, process: Process) -> None:
        async for report in process.reports():
            self._heard_at = self._now()
            if report.phase is Phase.broken:
                self._broken = report.reason
            elif report.phase is Phase.crashed:
                self._crashed = report.reason
            elif self._end_life.is_set():
                continue  # it drains: that is known, and its load counts no more
            elif report.phase is Phase.loading:
                self._standing.say(ReplicaState.loading, percent=report.percent)
            else:
                self._ready(report)

    def _ready(self, report: Report) -> None:
        if self._well_since is None:
            self._well_since = self._now()
            log.info("replica_ready", replica=self.seat.replica_id, model=self.seat.spec.model.ref)
        elif self._now() - self._well_since > WELL_AFTER_S:
            self._crashes, self._standing.trouble = 0, ""
        self._standing.ready(report, self._adapters.failed)

    async def _watch(self, process: Process) -> None:
        """Raises Crashed for a replica that starts for too long or hangs; tells how far its loading is."""
        began = self._now()
        timeout_s = self._node.settings.replica_start_timeout_s
        while True:
            await asyncio.sleep(WATCH_S)
            process.bound_log()
            if self._well_since is None:
                if self._now() - began > timeout_s:
                    tail = reason_from_log(process.log_tail(), None)
                    raise Crashed(f"the replica was not ready within {timeout_s:g} s; its last words: {tail}")
                if (read := process.loading_percent()) is not None:
                    self._standing.loaded(40 + read / 2)
            elif self._now() - self._heard_at > SILENCE_S:
                raise Crashed(f"the replica has said nothing for {SILENCE_S:g} s: it hangs")

    async def _after_crash(self, reason: str) -> None:
        self._well_since = None
        self._crashes += 1
        log.warning("replica_crashed", replica=self.seat.replica_id, crashes=self._crashes, reason=reason)
        if self._crashes >= self._node.settings.replica_max_crashes:
            return await self._stay_failed(reason)
        self._standing.restarts += 1
        pause = pause_s(self._crashes)
        self._standing.trouble = f"started again after it failed: {reason}"
        self._standing.say(ReplicaState.loading, reason=f"starts again in {pause:g} s after it failed: {reason}")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._end_life.wait(), pause)
        return None

    async def _stay_failed(self, reason: str) -> None:
        """No further start until anything about its deployment changes, be it its adapters."""
        self._crashes, self._standing.trouble = 0, ""
        if self._end_life.is_set():
            return  # something else was wanted meanwhile
        log.error("replica_failed", replica=self.seat.replica_id, reason=reason)
        self._standing.say(ReplicaState.failed, reason=reason)
        self._news.clear()
        await self._news.wait()

    async def _unless_ended(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; gives it up with Interrupted when something else is wanted."""
        working, asked = asyncio.create_task(work), asyncio.create_task(self._end_life.wait())
        try:
            await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise Interrupted
        finally:
            asked.cancel()
            working.cancel()

    def _spec(self, seat: Seat, folder: Path) -> ReplicaSpec:
        spec = seat.spec
        return ReplicaSpec(
            replica_id=seat.replica_id,
            served_name=spec.model.ref,
            model_folder=str(folder),
            engine=spec.engine,
            engine_args=dict(spec.engine_args),
            max_loras=spec.max_loras,
            max_lora_rank=spec.max_lora_rank,
            max_queue=spec.max_queue,
            threads=max(1, min(int(spec.resources.cpus), int(self._node.capacity.cpus))),
            devices=list(seat.place.devices),
            restarts=self._standing.restarts,
            cache_folder=str(self._node.settings.home / "cache" / "engines"),
        )

    def _adapters_told(self) -> None:
        self._standing.adapters_failed(self._adapters.failed)

    def _pulled(self, percent: float) -> None:
        self._standing.say(ReplicaState.pulling, percent=percent)

    def _trouble(self, reason: str) -> None:
        self._standing.say(ReplicaState.pulling, percent=self._standing.percent, reason=reason)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
