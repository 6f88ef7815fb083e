"""Where decisions are made and written down: one at a time, each whole or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from services.scheduler.clock import Clock
from services.scheduler.deployments import Deployment
from services.scheduler.domain import (
    AttemptChanged,
    Effect,
    Job,
    JobChanged,
    PublishOutput,
    Transitioned,
    publish_command,
    transitioned_event,
)
from services.scheduler.inputs import AttemptLost, Dispatch, Waits
from services.scheduler.rules import Limits, Moment
from services.scheduler.transitions import Input, transition
from services.scheduler.truth import Truth, Work
from shared.contracts.artifacts import artifact_key
from shared.contracts.jobs import JobStatus, SubmitJob
from shared.contracts.message import Message
from shared.contracts.topics import ATTEMPTS_DESIRED, DEPLOYMENTS_DESIRED, JOBS_EVENTS, JOBS_STATE, REGISTRY_COMMANDS
from shared.tracing import Attribute, Span, span


class Ledger:
    """Decisions over the truth. All of them hold one lock, so that none sees another half done."""

    def __init__(self, truth: Truth, clock: Clock, limits: Limits, on_written: Callable[[], None]) -> None:
        self.truth = truth
        self.clock = clock
        self._limits = limits
        self._on_written = on_written
        self._lock = threading.Lock()
        self._spans = ExitStack()

    @contextmanager
    def decide(self) -> Iterator[Work]:
        """One decision: what it changed and all that follows is committed together when the block ends well."""
        with self._lock, ExitStack() as self._spans, self.truth.work() as work:
            yield work
        if work.staged:
            self._on_written()

    def tell(self, work: Work, job: Job, message: Input) -> Job:
        """Put a message through the table, and note what follows."""
        after, effects = transition(job, message, Moment(self.clock.now(), self._limits))
        if after is not job:
            work.put(after)
            self._trace_step(job, message, after)
        for effect in effects:
            self.perform(work, after, effect)
        return after

    def add(self, work: Work, job: Job) -> None:
        """A job that was not there before."""
        work.put(job)
        self.perform(work, job, JobChanged())
        self.trace(SubmitJob.__name__, job.traceparent, job_id=job.id, status=job.status)

    def perform(self, work: Work, job: Job, effect: Effect) -> None:
        """Every effect is something for the outbox to say once the decision is committed."""
        now = self.clock.now()
        match effect:
            case JobChanged():
                work.mark(JOBS_STATE, job.id, now)
            case AttemptChanged():
                work.mark(ATTEMPTS_DESIRED, job.id, now)
            case Transitioned(before):
                work.send(JOBS_EVENTS, job.id, transitioned_event(job, before), now)
            case PublishOutput(output):
                key = artifact_key(job.tenant, output.name)
                work.send(REGISTRY_COMMANDS, key, publish_command(job, output), now)

    def trace(self, name: str, parent: str | None, **attributes: Attribute) -> Span:
        """A span that ends when this decision is committed, or failed."""
        step = self._spans.enter_context(span(name, parent, kind="consumer"))
        step.set(**attributes)
        return step

    def _trace_step(self, before: Job, message: Input, after: Job) -> None:
        if isinstance(message, Waits):
            return
        parent = message.traceparent if isinstance(message, Message) else None
        step = self.trace(
            type(message).__name__,
            parent or before.traceparent,
            job_id=before.id,
            attempt=after.attempt,
            before=before.status,
            status=after.status,
        )
        if isinstance(message, Dispatch):
            step.set(waited_s=(self.clock.now() - before.queued_at).total_seconds())
        if isinstance(message, AttemptLost):
            step.fail(f"attempt {message.attempt} was lost: {message.why}")
        if after.failure and after.status is JobStatus.failed:
            step.fail(after.failure.message)

    def set_deployment(self, work: Work, deployment: Deployment) -> None:
        work.put_deployment(deployment)
        work.mark(DEPLOYMENTS_DESIRED, deployment.key, self.clock.now())
