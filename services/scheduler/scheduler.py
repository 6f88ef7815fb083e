"""The loop at the heart: look at what is due, decide, write it down. `Scheduler.reconcile` reads it out."""

from __future__ import annotations

import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy.exc import SQLAlchemyError

from services.scheduler import metrics
from services.scheduler.deployments import Artifacts, GivenUp, Surroundings, plan
from services.scheduler.domain import Job
from services.scheduler.inputs import AnswerOverdue, BackoffOver, Dispatch, Waits
from services.scheduler.ledger import Ledger
from services.scheduler.liveness import Liveness
from services.scheduler.order import HOLD_BACK_S, Line, Waiting, next_in_turn, waited_s, wants_device
from services.scheduler.placement import Need, Rooms, Use, uses_of
from services.scheduler.truth import Work
from shared.contracts.jobs import JobPurged, JobStatus, Place
from shared.contracts.nodes import Role, RunRef
from shared.contracts.topics import ATTEMPTS_DESIRED, JOBS_EVENTS, JOBS_STATE
from shared.settings import Settings

log = logging.getLogger("llmos.scheduler")

PAGE = 32
"""Jobs read from a line at once."""
TELL_EVERY_S = 1.0
TOLD_AT_ONCE = 200
"""Waiting jobs of a line whose reason is renewed at once, every so often."""


class Scheduler:
    """Decides what runs where. `wake` makes it look at once; otherwise it looks every `tick_s`."""

    def __init__(
        self, ledger: Ledger, liveness: Liveness, artifacts: Artifacts, given_up: GivenUp, settings: Settings
    ) -> None:
        self._ledger = ledger
        self._clock = ledger.clock
        self._liveness = liveness
        self._artifacts = artifacts
        self._given_up = given_up
        self._settings = settings
        self._leading_since = self._clock.now()
        self._served: dict[Line, datetime] = {}
        self._told_s = float("-inf")
        self._wake = threading.Event()
        self._stopping = threading.Event()

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Until stopped. Raises Deposed."""
        while not self._stopping.is_set():
            self._wake.wait(self._settings.tick_s)
            self._wake.clear()
            try:
                self.reconcile()
            except SQLAlchemyError as error:
                log.warning("the database did not answer, which is tried again: %s", error)
                self._stopping.wait(1.0)

    def reconcile(self) -> None:
        """One look at everything that is due."""
        self._liveness.tick()
        if not self._liveness.caught_up:
            return
        self.end_lost_attempts()
        self.wake_what_is_due()
        self.dispatch_queued()
        self.place_replicas()
        self.forget_old_jobs()

    def end_lost_attempts(self) -> None:
        """Attempts whose node is silent or denies them are over; a doorbell nobody answered rings again."""
        with self._ledger.decide() as work:
            active = work.active()
            for job in active:
                if verdict := self._liveness.verdict(job):
                    self._ledger.tell(work, job, verdict)
                elif self._liveness.ring_again(job):
                    work.mark(ATTEMPTS_DESIRED, job.id, self._clock.now())
        self._liveness.forget_all_but(active)

    def wake_what_is_due(self) -> None:
        """Backoffs that are over, and publications that wait for an answer."""
        with self._ledger.decide() as work:
            for job in work.due(self._clock.now()):
                over = BackoffOver() if job.status is JobStatus.backoff else AnswerOverdue()
                self._ledger.tell(work, job, over)

    def dispatch_queued(self) -> None:
        """Start what fits, in turn. A line whose head does not fit waits; the lines behind it may go on."""
        with self._ledger.decide() as work:
            active = work.active()
            rooms = self._rooms(Role.trainer, work, active)
            if rooms.full and not self._telling_is_due():
                return
            running = Counter(job.tenant for job in active)
            waiting = self._waiting(work)
            while waiting:
                turn = next_in_turn(waiting, running)
                need = rooms.need(turn.head.spec.resources, wants_device(turn.head))
                if places := self._find(turn.head, need, rooms, running):
                    self._dispatch(work, turn, places)
                    running[turn.line.tenant] += 1
                    if turn.step():
                        continue
                else:
                    self._stays(work, turn, need, rooms, running)
                waiting.remove(turn)
            self._told()

    def place_replicas(self) -> None:
        """Seat the replicas of every deployment, free the seats of those given up, hand each the adapters it adopts."""
        if not self._artifacts.caught_up:
            return
        with self._ledger.decide() as work:
            if not (deployments := work.deployments()):
                return
            rooms = self._rooms(Role.inference, work, work.active())
            for deployment in deployments:
                planned = plan(deployment, rooms, self._surroundings())
                if planned is not deployment:
                    self._ledger.set_deployment(work, planned)

    def forget_old_jobs(self) -> None:
        """Jobs that ended long ago leave the truth, and the topics."""
        now = self._clock.now()
        with self._ledger.decide() as work:
            for job in work.finished_before(now - timedelta(days=self._settings.job_retention_days)):
                work.forget(job)
                work.send(JOBS_EVENTS, job.id, JobPurged(tenant=job.tenant, job_id=job.id), now)
                work.mark(JOBS_STATE, job.id, now)
                work.mark(ATTEMPTS_DESIRED, job.id, now)

    def _dispatch(self, work: Work, turn: Waiting, places: list[Place]) -> None:
        """The job starts: from here on `attempts.desired` names these places, and their doorbells ring."""
        self._ledger.tell(work, turn.head, Dispatch(places))
        self._served[turn.line] = self._clock.now()
        metrics.DISPATCH_LATENCY.observe((self._clock.now() - turn.head.queued_at).total_seconds())

    def _find(self, job: Job, need: Need, rooms: Rooms, running: Counter[str]) -> list[Place] | None:
        """Places for the job: where its files are, rather not where nobody took it up."""
        if running[job.tenant] >= self._settings.max_running_jobs:
            return None
        last = job.attempts[-1] if job.attempts else None
        known = {place.node for place in last.places} if last else set()
        return rooms.find(need, prefer=known, avoid=known if last and not last.runs else ())

    def _stays(self, work: Work, turn: Waiting, need: Need, rooms: Rooms, running: Counter[str]) -> None:
        """A line that waits for long for what could fit keeps nodes free for itself. Now and then readers hear why."""
        never = rooms.why_never(need)
        reason = never or "waits for its turn"
        if running[turn.line.tenant] >= self._settings.max_running_jobs:
            reason = f"waits: {self._settings.max_running_jobs} jobs of this tenant run already, which is the limit"
        elif not never and turn.waited_s > HOLD_BACK_S:
            rooms.hold_back(need)
        if self._telling_is_due():
            for job in work.told_otherwise(turn.line, reason, TOLD_AT_ONCE):
                self._ledger.tell(work, job, Waits(reason, placeable=reason != never or not rooms.rooms))

    def _telling_is_due(self) -> bool:
        """Reasons are for people: looking through the whole queue for them at every wake would be waste."""
        return self._clock.monotonic() - self._told_s >= TELL_EVERY_S

    def _told(self) -> None:
        if self._telling_is_due():
            self._told_s = self._clock.monotonic()

    def _waiting(self, work: Work) -> list[Waiting]:
        """Every line with its head."""
        now, waiting = self._clock.now(), []
        lines = work.lines()
        self._served = {line: at for line, at in self._served.items() if line in lines}
        for line in lines:
            rest = _in_order(work, line)
            if head := next(rest, None):
                waited = waited_s(line, head, self._served, self._leading_since, now)
                waiting.append(Waiting(line, rest, head, waited))
        return waiting

    def _rooms(self, role: Role, work: Work, active: list[Job]) -> Rooms:
        """What is free: what the nodes have, less what the truth has placed and what is only just leaving."""
        uses = [use for job in active for use in uses_of(job.spec.resources, job.places)]
        uses += [use for deployment in work.deployments() for use in deployment.uses()]
        uses += self._left_over(work, active)
        return Rooms.of(role, self._liveness.nodes(), uses)

    def _left_over(self, work: Work, active: list[Job]) -> list[Use]:
        """What runs still hold whose attempts are over. One of an unknown job takes a slot and no more."""
        runs = self._liveness.leftovers(active)
        jobs = work.jobs({run.job_id for _, run in runs})
        unknown = [Use(node, Role.trainer, 0, 0) for node, run in runs if run.job_id not in jobs]
        held: defaultdict[tuple[str, int], list[Place]] = defaultdict(list)
        for node, run in runs:
            if run.job_id in jobs:
                held[run.job_id, run.attempt].append(_seat(jobs[run.job_id], node, run))
        return unknown + [
            use for (job_id, _), seats in held.items() for use in uses_of(jobs[job_id].spec.resources, seats)
        ]

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            artifacts=self._artifacts,
            given_up=self._given_up,
            is_gone=lambda node: self._liveness.is_gone(node, Role.inference),
            still_there=lambda seat: self._liveness.lists_replica(seat.node, seat.replica_id),
            new_id=lambda name: f"{name}-{uuid4().hex[:8]}",
        )


def _seat(job: Job, node: str, run: RunRef) -> Place:
    """Where the run sits, as its attempt was placed."""
    places = [place for each in job.attempts if each.attempt == run.attempt for place in each.places]
    return next((place for place in places if place.rank == run.rank), Place(node=node))


def _in_order(work: Work, line: Line) -> Iterator[Job]:
    """The jobs of a line, read as they are needed: mostly only the head is."""
    offset, page = 0, 1
    while jobs := work.in_line(line, limit=page, offset=offset):
        yield from jobs
        offset, page = offset + len(jobs), PAGE
