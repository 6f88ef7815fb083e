"""The node's agent: it follows what is wished of this node and converges to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import structlog

from services.trainer.domain import Seat, decide
from services.trainer.endings import StopOrder
from services.trainer.outbox import Contact
from services.trainer.run import Run
from shared.bus.port import Record
from shared.contracts.jobs import DesiredAttempt, Place
from shared.contracts.nodes import RunRef

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0

StartRun = Callable[[DesiredAttempt, Place], Run]


@dataclass
class Wishes:
    """The newest DesiredAttempt of every job, filled by the bus's thread and read by the agent's."""

    _guard: threading.Lock = field(default_factory=threading.Lock)
    _desired: dict[str, DesiredAttempt] = field(default_factory=dict)

    def take(self, record: Record) -> bool:
        """Whether the record was news. A late copy of an older version is not."""
        with self._guard:
            known = self._desired.get(record.key)
            if record.message is None:
                return self._desired.pop(record.key, None) is not None
            if not isinstance(record.message, DesiredAttempt):
                return False
            if known and record.message.version <= known.version:
                return False
            self._desired[record.key] = record.message
            return True

    def now(self) -> dict[str, DesiredAttempt]:
        with self._guard:
            return dict(self._desired)


class Agent:
    """`run` is the loop, on a thread that outlives all runs: the kernel kills children with the thread that
    started them. Everything else may be called from any thread, `look` and `shut_down` from signal handlers too."""

    def __init__(
        self, node: str, start_run: StartRun, contact: Contact, orphan_timeout_s: float, on_runs: Callable[[], None]
    ) -> None:
        self._node = node
        self._start_run = start_run
        self._contact = contact
        self._orphan_timeout_s = orphan_timeout_s
        self._on_runs = on_runs
        self._wishes = Wishes()
        self._caught_up = False
        self._runs: dict[str, Run] = {}
        self._ended: set[Seat] = set()
        self._pokes: SimpleQueue[None] = SimpleQueue()
        self._stopping = False

    def on_desired(self, record: Record) -> None:
        """From the bus: a wish changed."""
        if self._wishes.take(record):
            self.look()

    def caught_up(self) -> None:
        """From the bus: all wishes that there were have been shown."""
        self._caught_up = True
        self.look()

    def look(self) -> None:
        """Look at the wishes now instead of soon."""
        self._pokes.put(None)

    def changed(self) -> None:
        """From a run: it was announced, or it is settled."""
        self._on_runs()
        self.look()

    def shut_down(self) -> None:
        """End the loop; `run` returns after what is going on has been stopped."""
        self._stopping = True
        self.look()

    def listed(self) -> list[RunRef]:
        """What the heartbeat says: announced, and not settled yet."""
        return [run.ref for run in list(self._runs.values()) if run.announced and not run.settled]

    def run(self, farewell_s: float) -> None:
        """Converge until shut down, then give the runs back; wait for them at most `farewell_s`."""
        while not self._stopping:
            self._wait_for_a_poke(LOOK_EVERY_S)
            self.converge()
        self._give_back(farewell_s)

    def converge(self) -> None:
        """One look: forget what is settled, stop what should not run, start what should."""
        self._forget_settled()
        if not self._caught_up:
            return
        desired = self._wishes.now()
        self._ended = {seat for seat in self._ended if _current(desired.get(seat.job_id), seat)}
        decisions = decide(self._node, desired, [run.ref for run in self._runs.values()], self._ended)
        for run in self._runs.values():
            if wish := desired.get(run.ref.job_id):
                run.told(wish)
        for ref, order in decisions.stops:
            self._runs[ref.run_id].stop(order)
        self._stop_orphans()
        for attempt, place in decisions.starts:
            try:
                run = self._start_run(attempt, place)
            except RuntimeError as error:  # no thread more, not even to say so: the next look tries again
                log.warning("run_waits", job_id=attempt.job_id, attempt=attempt.attempt, reason=str(error))
                continue
            self._runs[run.ref.run_id] = run
            run.start()

    def _forget_settled(self) -> None:
        for run_id, run in list(self._runs.items()):
            if run.settled:
                self._ended.add(Seat(run.ref.job_id, run.ref.attempt, run.ref.rank))
                del self._runs[run_id]

    def _stop_orphans(self) -> None:
        if self._contact.silence_s() > self._orphan_timeout_s:
            why = f"The node had no contact to the bus for {self._orphan_timeout_s:g} s and stopped the run"
            for run in self._runs.values():
                run.stop(StopOrder(None, why))

    def _give_back(self, farewell_s: float) -> None:
        deadline_s = time.monotonic() + farewell_s
        for run in self._runs.values():
            run.stop(StopOrder(None, f"The trainer on {self._node} was stopped"))
        while self._runs and (left_s := deadline_s - time.monotonic()) > 0:
            self._wait_for_a_poke(left_s)
            self._forget_settled()
        for run in self._runs.values():
            log.warning("run_abandoned", run_id=run.ref.run_id, job_id=run.ref.job_id)
            run.abandon()

    def _wait_for_a_poke(self, timeout_s: float) -> None:
        try:
            self._pokes.get(timeout=timeout_s)
            while True:
                self._pokes.get_nowait()
        except Empty:
            return


def _current(desired: DesiredAttempt | None, seat: Seat) -> bool:
    return desired is not None and desired.attempt <= seat.attempt
