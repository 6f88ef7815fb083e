"""What the scheduler knows of a job, and what others are told of it. Pure: no clock, no queue, no database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid5

from pydantic import Field

from shared.contracts.artifacts import ArtifactPin, PublishArtifact
from shared.contracts.jobs import (
    AttemptState,
    CheckpointRef,
    DesiredAttempt,
    Failure,
    FailureReason,
    JobSpec,
    JobState,
    JobStatus,
    JobTransitioned,
    Output,
    Place,
    SubmitJob,
    Wish,
)
from shared.contracts.message import Value

KEPT_CHECKPOINTS = 3
KEPT_ATTEMPTS = 20
NAMESPACE = UUID("6b1c3a52-94a5-4e0e-8f6b-3f3d6f3c8a10")
"""Ids derived from this one are the same however often they are derived: that is how repeats are recognised."""

ACTIVE = frozenset({JobStatus.starting, JobStatus.running, JobStatus.pausing, JobStatus.cancelling})
"""A job in one of these has an attempt, and holds its places."""

_WISHES = {JobStatus.pausing: Wish.pause, JobStatus.cancelling: Wish.cancel}


class Job(Value):
    """The truth about one job. It changes through `transitions.transition` only."""

    id: str
    tenant: str = "default"
    traceparent: str | None = None
    spec: JobSpec
    retry_of: str | None = None
    status: JobStatus = JobStatus.queued
    reason: str = ""
    placeable: bool = True
    """False while it is queued for what no known node has."""
    version: int = 1
    desired_version: int = 0
    """The version at which what workers shall converge to changed last; 0 while there was nothing yet."""

    attempts: list[AttemptState] = Field(default_factory=list)
    """Oldest first; the last `KEPT_ATTEMPTS`."""
    announced: dict[int, datetime] = Field(default_factory=dict)
    """Rank → when the accepted run of the newest attempt said that it started, by its own node's clock."""
    checkpoints: list[CheckpointRef] = Field(default_factory=list)
    """Oldest first; the last `KEPT_CHECKPOINTS`."""
    resume_from: CheckpointRef | None = None
    """Where the newest attempt starts from."""
    meeting: str = ""
    """Where the ranks of the newest attempt meet, as its rank 0 says."""
    lost: int = 0
    crashes: int = 0
    """Workers lost and children crashed since the last new checkpoint."""
    resume_when_paused: bool = False

    outputs: list[Output] = Field(default_factory=list)
    published: dict[str, ArtifactPin] = Field(default_factory=dict)
    """Output name → the version that the registry made of it."""
    publish_tries: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    failure: Failure | None = None

    created_at: datetime
    queued_at: datetime
    """When it came into the queue; a loss does not send it to the end."""
    not_before: datetime | None = None
    """In `backoff`: when it may be tried again. In `publishing`: when the registry is asked again."""
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def attempt(self) -> int:
        """The newest attempt's number; 0 before the first."""
        return self.attempts[-1].attempt if self.attempts else 0

    @property
    def current(self) -> AttemptState | None:
        """The attempt that runs or is about to."""
        return self.attempts[-1] if self.status in ACTIVE else None

    @property
    def places(self) -> list[Place]:
        return self.current.places if self.current else []

    @property
    def runs(self) -> dict[int, str]:
        """Rank → the accepted run of the current attempt."""
        return self.current.runs if self.current else {}

    @property
    def wish(self) -> Wish:
        return _WISHES.get(self.status, Wish.run) if self.current else Wish.none

    @property
    def wanted(self) -> object:
        """What workers converge to, to be compared: a change of it is published."""
        if not self.attempts or self.status.terminal:
            return None
        newest = self.attempts[-1]
        return newest.attempt, newest.places, newest.runs, self.wish

    @property
    def unpublished(self) -> list[Output]:
        return [output for output in self.outputs if output.name not in self.published]


def new_job(command: SubmitJob, now: datetime) -> Job:
    """The job that a submission makes."""
    return Job(
        id=command.job_id,
        tenant=command.tenant,
        traceparent=command.traceparent,
        spec=command.spec,
        retry_of=command.retry_of,
        reason="waits for its turn",
        created_at=command.at,
        queued_at=now,
    )


def undecodable_job(job_id: str, tenant: str, job_type: str, why: str, now: datetime) -> Job:
    """The job of a submission that could not be read: failed, so that whoever asks sees it."""
    failure = Failure(
        reason=FailureReason.undecodable,
        message=f"The submission could not be read: {why}.",
        hint="Submit it again; if that fails too, gateway and scheduler are of different versions.",
    )
    return Job(
        id=job_id,
        tenant=tenant,
        spec=JobSpec(type=job_type),
        status=JobStatus.failed,
        reason=failure.message,
        failure=failure,
        created_at=now,
        queued_at=now,
        finished_at=now,
    )


# What others are told.


def job_state(job: Job) -> JobState:
    """The job for readers, as it goes on `jobs.state`."""
    return JobState(
        tenant=job.tenant,
        traceparent=job.traceparent,
        job_id=job.id,
        version=job.version,
        spec=job.spec,
        status=job.status,
        reason=job.reason,
        placeable=job.placeable,
        attempt=job.attempt,
        attempts=job.attempts,
        checkpoints=job.checkpoints,
        outputs=list(job.published.values()),
        metrics=job.metrics,
        failure=job.failure,
        retry_of=job.retry_of,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def desired_attempt(job: Job) -> DesiredAttempt | None:
    """What workers converge to, as it goes on `attempts.desired`; None once the job is terminal, or before any attempt.

    Between attempts (queued again, backoff, paused, publishing) the last one stays with the wish `none`: unlike a
    tombstone it carries a version, so that a late copy cannot undo it.
    """
    if job.wanted is None:
        return None
    newest = job.attempts[-1]
    return DesiredAttempt(
        tenant=job.tenant,
        traceparent=job.traceparent,
        job_id=job.id,
        attempt=newest.attempt,
        version=job.desired_version,
        spec=job.spec,
        places=newest.places,
        wish=job.wish,
        accepted=newest.runs,
        resume_from=job.resume_from,
        meeting=job.meeting,
    )


def publication_id(job_id: str, output: str) -> str:
    """The same for every attempt and every repeat, so that an output is published once."""
    return str(uuid5(NAMESPACE, f"{job_id}/{output}"))


def publish_command(job: Job, output: Output) -> PublishArtifact:
    """The publication is the same at every try; the command is a new one, since its answer may be another."""
    publication = publication_id(job.id, output.name)
    return PublishArtifact(
        id=str(uuid5(NAMESPACE, f"{publication}#{job.publish_tries}")),
        tenant=job.tenant,
        traceparent=job.traceparent,
        publication_id=publication,
        name=output.name,
        kind=output.kind,
        staged_prefix=output.staged_prefix,
        job_id=job.id,
        parents=output.parents,
    )


def transitioned_event(job: Job, before: JobStatus) -> JobTransitioned:
    return JobTransitioned(
        id=str(uuid5(NAMESPACE, f"{job.id}#{job.version}")),
        tenant=job.tenant,
        traceparent=job.traceparent,
        job_id=job.id,
        before=before,
        after=job.status,
        attempt=job.attempt,
        reason=job.reason,
    )


# What follows from a change. Values, performed by `handlers.perform`.


@dataclass(frozen=True)
class JobChanged:
    """Readers shall see the job as it is now."""


@dataclass(frozen=True)
class AttemptChanged:
    """Workers shall see what is wanted now; their doorbells ring once they can."""


@dataclass(frozen=True)
class Transitioned:
    before: JobStatus


@dataclass(frozen=True)
class PublishOutput:
    output: Output


Effect = JobChanged | AttemptChanged | Transitioned | PublishOutput
