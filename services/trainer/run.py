"""One run: a child process from its start to the last word about it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from pathlib import Path

import structlog

from services.trainer import endings, protocol
from services.trainer.endings import Ended, StopOrder
from services.trainer.gang import (
    Gathering,
    devices_of,
    meeting_address,
    patience_s,
    ranks_beside,
    reserve_port,
    seat,
)
from services.trainer.mover import Mover
from services.trainer.oom import oom_kills
from services.trainer.outbox import Outbox
from services.trainer.spawn import Child, child_environment
from services.trainer.supervision import TICK_S, Supervision
from services.trainer.telling import Telling
from services.trainer.tracing import RunTrace
from services.trainer.transfers import Aborted, Transfers
from services.trainer.workplace import Workplace
from shared.contracts.jobs import DesiredAttempt, Place, RunMessage, Wish
from shared.contracts.nodes import RunRef

log = structlog.get_logger(__name__)

SUPERSEDED_GRACE_S = 5.0
"""For a run whose work nobody wants: enough to clean up, too little to hold its successor back."""


class Run:
    """`start` must be called by a thread that outlives the run; a thread of its own supervises it from then on."""

    def __init__(
        self, desired: DesiredAttempt, place: Place, run_id: str, at: Workplace, on_change: Callable[[], None]
    ) -> None:
        self.ref = RunRef(job_id=desired.job_id, attempt=desired.attempt, rank=place.rank, run_id=run_id)
        self.announced = False
        """AttemptStarted is durable: heartbeats list the run."""
        self.settled = False
        """The final event is durable: the run is over for everyone."""
        self._desired = desired
        self._place = place
        self._at = at
        self._on_change = on_change
        self._trace = RunTrace(desired, self.ref, place.node)
        self._log = log.bind(job_id=desired.job_id, attempt=desired.attempt, run_id=run_id)
        outbox = Outbox(at.bus, at.contact, run_id[:8])
        self._telling = Telling(desired, place, self.ref, self._trace.traceparent, outbox)
        self._transfers = Transfers(at.store, at.cache, run_id, at.settings.orphan_timeout_s, self._telling.say)
        self._mover = Mover(run_id[:8])
        self._moving_ends_s = float("inf")
        """When transfers that nobody wants any more are left behind, should the store not even let them be aborted."""
        self._guard = threading.Lock()
        self._order: StopOrder | None = None
        self._ordered = threading.Event()
        self._abandoned = False
        self._begun = False
        self._supervision: Supervision | None = None
        self._said: protocol.Done | protocol.Failed | protocol.Halted | None = None
        self._problem: Ended | None = None
        self._oom_kills = oom_kills()
        self._gathering = Gathering(desired) if len(desired.places) > 1 else None

    def start(self) -> None:
        """Start the child, tell of it, supervise it. What the machine refuses ends the run, not the caller."""
        child: Child | None = None
        try:
            child, workdir, meeting = self._spawn()
            self._announce(child.pid, meeting)
            supervision = Supervision(child, partial(self._hear, child), self._telling.print, self._telling.flush)
            self._mover.start()
            threading.Thread(target=self._live, args=(child, workdir, supervision), name="run").start()
        except Exception as error:  # no file, thread or process more, or a name that is none
            self._log.warning("run_not_started", reason=str(error))
            self._not_started(error, child)
            return
        self._supervision = supervision
        self._log.info("run_started", pid=child.pid)

    def told(self, desired: DesiredAttempt) -> None:
        """The wish as it is now: the ranks of a gang begin when all were accepted."""
        if self._gathering:
            self._gathering.told(desired)

    def stop(self, order: StopOrder) -> None:
        """Ask the run to end; a stronger order replaces a weaker one. Returns at once."""
        with self._guard:
            if not order.outranks(self._order):
                return
            self._order = order
            begun = self._begun
        self._ordered.set()
        self._log.info("run_stopping", wish=order.wish, why=order.why)
        if order.worthless or not begun:
            self._end_transfers(self._grace_s(order))
        if self._supervision:
            self._supervision.stop(self._grace_s(order) if begun else 0)

    def abandon(self) -> None:
        """The trainer ends: give up what is under way, and reports that are not durable by now."""
        self._abandoned = True
        self._ordered.set()
        self._end_transfers(0)
        if self._supervision:
            self._supervision.stop(0)
        self._telling.abandon()

    def _end_transfers(self, grace_s: float) -> None:
        self._transfers.abort()
        if self._gathering:
            self._gathering.abandon()
        self._moving_ends_s = min(self._moving_ends_s, time.monotonic() + grace_s)

    # On the agent's thread, at the start

    def _spawn(self) -> tuple[Child, Path, str]:
        """The child, its folder, and where the others of its gang meet it."""
        spec, ref = self._desired.spec, self.ref
        ranks = ranks_beside(self._desired, self._place)
        environment = child_environment(
            ref.run_id, devices_of(ranks), spec.resources.cpus, self._at.capacity, len(ranks)
        )
        workdir = self._at.folder.workdir(ref.run_id)
        if self._gathering and ref.rank == 0:
            address = meeting_address(self._desired, self._at.settings)
            with reserve_port(address) as listener:  # a port that is the child's from its first moment
                meeting = f"{address}:{listener.getsockname()[1]}"
                child = Child.start(spec.type, workdir, environment, listener)
        else:
            meeting = ""
            child = Child.start(spec.type, workdir, environment)
        try:
            self._at.folder.record(ref.run_id, ref.job_id, ref.attempt, ref.rank, child.pid)
        except Exception:
            child.reap()
            child.close()
            raise
        return child, workdir, meeting

    def _not_started(self, error: Exception, child: Child | None) -> None:
        if child:
            child.reap()
            child.close()
        else:
            self._announce(os.getpid())
        self._mover.close()
        self._settle(self._telling.failed(endings.of_transfer(error, "Starting the training process", [])))
        self._at.folder.clear(self.ref.run_id)

    def _announce(self, pid: int, meeting: str = "") -> None:
        def announced() -> None:
            self.announced = True
            self._on_change()

        self._telling.started(pid, meeting, announced)

    # On the run's own thread

    def _live(self, child: Child, workdir: Path, supervision: Supervision) -> None:
        self._mover.submit(self._equip, child, workdir)
        try:
            status = supervision.until_gone()
            if not self._begun:
                self._end_transfers(0)  # nobody needs the inputs any more
            self._trace.recipe_ends(self._said)
            self._await_the_others()
            final = self._concluded(status)
        except Exception as error:  # a defect must not leave the attempt without an end
            self._log.exception("supervision_failed")
            child.reap()
            self._end_transfers(0)
            final = self._telling.failed(endings.of_transfer(error, "Supervising the run", self._telling.tail()))
        self._mover.close()
        self._telling.flush(everything=True)
        self._settle(final)
        child.close()
        self._transfers.release()
        self._at.folder.clear(self.ref.run_id)

    def _hear(self, child: Child, report: protocol.Report) -> None:
        match report:
            case protocol.ProgressMade():
                self._telling.progressed(report)
            case protocol.CheckpointMade():
                self._mover.submit(self._save, child, report)
            case protocol.Done() | protocol.Failed() | protocol.Halted():
                self._said = report
                self._trace.recipe_ends(report)

    def _await_the_others(self) -> None:
        """One that has not begun holds nothing that they could need."""
        ended_s = time.monotonic()
        while (
            self._gathering
            and self._begun
            and not self._abandoned
            and time.monotonic() - ended_s < patience_s(self.ref.rank, self._said, self._order)
        ):
            self._telling.flush()
            self._ordered.wait(TICK_S)
            self._ordered.clear()  # before the next look at the order, or a second look would not wait

    def _concluded(self, status: int) -> RunMessage:
        """After the uploads that wait: checkpoints that lie whole on the disk still count."""
        concluding = self._mover.submit(self._conclude, status)
        while not wait([concluding], TICK_S).done:
            self._telling.flush()
            if time.monotonic() > self._moving_ends_s:
                self._log.warning("transfer_left_behind")
                return self._conclude(status)
        return concluding.result()

    def _conclude(self, status: int) -> RunMessage:
        """Which last word this run deserves."""
        order, said, tail = self._order, self._said, self._telling.tail()
        if order and order.worthless:
            return self._telling.stopped(order)
        if self._problem:
            return self._telling.failed(self._problem)
        if isinstance(said, protocol.Done):
            return self._publish(said)
        if isinstance(said, protocol.Failed) and not (order and said.retryable):
            return self._telling.failed(endings.of_words(said, tail))
        if order and order.wish:
            return self._telling.stopped(order)
        if order or isinstance(said, protocol.Halted):
            return self._telling.failed(endings.given_back(order.why if order else endings.STOPPED_FROM_OUTSIDE, tail))
        return self._telling.failed(endings.of_exit(status, oom_kills() > self._oom_kills, tail))

    def _publish(self, done: protocol.Done) -> RunMessage:
        """Upload the outputs. A pause that comes meanwhile comes too late; a cancel does not."""
        try:
            with self._trace.part("upload outputs"):
                outputs = [self._transfers.upload_output(self._desired, made) for made in done.outputs]
        except Aborted:
            return self._telling.stopped(self._order or StopOrder(Wish.none))
        except Exception as error:  # whatever the store, the disk or a recipe's bad name says
            self._log.warning("outputs_not_uploaded", reason=str(error))
            return self._telling.failed(endings.of_transfer(error, "Uploading the outputs", self._telling.tail()))
        metrics = {name: value for made in reversed(done.outputs) for name, value in made.metrics.items()}
        return self._telling.succeeded(outputs, metrics)

    def _settle(self, final: RunMessage) -> None:
        def settled() -> None:
            self.settled = True
            self._on_change()

        self._log.info("run_ended", how=type(final).__name__)
        self._trace.ends(final)
        self._telling.ends(final, settled)

    # On the mover's thread

    def _equip(self, child: Child, workdir: Path) -> None:
        """Bring the inputs while the child loads its libraries, then let it begin."""
        settings = self._at.settings
        try:
            with self._trace.part("pull inputs"):
                inputs, resume_from = self._transfers.pull(self._desired)
            meeting = self._gathering.wait() if self._gathering else ""
        except Aborted:
            return
        except Exception as error:  # whatever the store or the disk says
            self._give_up(error, "Pulling the inputs", child)
            return
        with self._guard:
            if self._order:
                return
            self._begun = True
        self._trace.recipe_begins(self._desired.spec.type)
        child.send(
            protocol.Begin(
                spec=self._desired.spec.model_dump(mode="json"),
                inputs=inputs,
                workdir=str(workdir),
                attempt=self.ref.attempt,
                resume_from=resume_from,
                allow_local_models=settings.allow_local_models,
                allow_hub=settings.allow_hub,
                gang=seat(self._desired, self._place, meeting, settings) if meeting else None,
            )
        )

    def _save(self, child: Child, made: protocol.CheckpointMade) -> None:
        try:
            with self._trace.part("upload checkpoint"):
                checkpoint = self._transfers.upload_checkpoint(self._desired, made)
            if checkpoint:
                self._telling.saved(checkpoint)
        except Aborted:
            return
        except Exception as error:  # whatever the store or the disk says
            self._give_up(error, f"Uploading the checkpoint of step {made.step}", child)
        finally:
            child.send(protocol.Uploaded(made.step))

    def _give_up(self, error: Exception, doing: str, child: Child) -> None:
        self._log.warning("run_given_up", doing=doing, reason=str(error))
        self._problem = self._problem or endings.of_transfer(error, doing, self._telling.tail())
        child.kill()

    def _grace_s(self, order: StopOrder) -> float:
        grace_s = self._at.settings.stop_grace_s
        return min(grace_s, SUPERSEDED_GRACE_S) if order.wish is Wish.none else grace_s
