"""Jobs and what is said to them, made for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from services.scheduler.domain import Effect, Job, new_job, publication_id
from services.scheduler.inputs import Dispatch
from services.scheduler.rules import Limits, Moment
from services.scheduler.transitions import Input, transition
from shared.contracts.artifacts import ArtifactKind, ArtifactPin, CommandDone, CommandRejected
from shared.contracts.jobs import (
    AttemptFailed,
    AttemptStarted,
    AttemptStopped,
    AttemptSucceeded,
    CheckpointRef,
    CheckpointSaved,
    Failure,
    FailureReason,
    JobSpec,
    Output,
    Place,
    Resources,
    SubmitJob,
    Wish,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LIMITS = Limits(max_lost=3, max_crashes=2, backoff_s=2)


def a_job(job_id: str = "j1", tenant: str = "default", **spec: Any) -> Job:
    nodes = spec.pop("nodes", 1)
    resources = spec.pop("resources", Resources(nodes=nodes))
    fields = {"type": "probe", "output": "out", "resources": resources, **spec}
    return new_job(SubmitJob(job_id=job_id, tenant=tenant, spec=JobSpec.model_validate(fields), at=NOW), NOW)


def tell(job: Job, *messages: Input, after_s: float = 0) -> Job:
    """The job after all of them."""
    for message in messages:
        job, _ = told(job, message, after_s)
    return job


def told(job: Job, message: Input, after_s: float = 0) -> tuple[Job, list[Effect]]:
    return transition(job, message, Moment(NOW + timedelta(seconds=after_s), LIMITS))


def dispatch(*nodes: str) -> Dispatch:
    return Dispatch([Place(node=node, rank=rank) for rank, node in enumerate(nodes or ("n1",))])


def started(attempt: int = 1, run: str = "run", rank: int = 0, job_id: str = "j1") -> AttemptStarted:
    return AttemptStarted(job_id=job_id, attempt=attempt, rank=rank, run_id=run, node="n1", pid=1, at=NOW)


def saved(step: int, attempt: int = 1, run: str = "run", rank: int = 0) -> CheckpointSaved:
    ref = CheckpointRef(step=step, key=f"{attempt}/{run}/{step}", attempt=attempt, run_id=run, at=NOW)
    return CheckpointSaved(job_id="j1", attempt=attempt, rank=rank, run_id=run, checkpoint=ref)


def succeeded(
    attempt: int = 1, run: str = "run", rank: int = 0, outputs: tuple[str, ...] = ("out",)
) -> AttemptSucceeded:
    made = [Output(name=name, kind=ArtifactKind.report, staged_prefix=f"{attempt}/{run}/{name}") for name in outputs]
    return AttemptSucceeded(job_id="j1", attempt=attempt, rank=rank, run_id=run, outputs=made)


def failed(
    attempt: int = 1, run: str = "run", rank: int = 0, retryable: bool = True, lost: bool = False
) -> AttemptFailed:
    reason = FailureReason.crashed if retryable else FailureReason.bad_data
    if lost:
        reason = FailureReason.lost
    failure = Failure(reason=reason, message="line 3 is no JSON")
    return AttemptFailed(job_id="j1", attempt=attempt, rank=rank, run_id=run, failure=failure, retryable=retryable)


def stopped(attempt: int = 1, run: str = "run", rank: int = 0, wish: Wish = Wish.cancel) -> AttemptStopped:
    return AttemptStopped(job_id="j1", attempt=attempt, rank=rank, run_id=run, wish=wish)


def done(output: str = "out", job_id: str = "j1") -> CommandDone:
    publication = publication_id(job_id, output)
    pin = ArtifactPin(name=output, version=1, kind=ArtifactKind.report, manifest_key=f"manifests/{output}")
    return CommandDone(command_id=publication, publication_id=publication, job_id=job_id, artifact=pin)


def rejected(output: str = "out", retryable: bool = False) -> CommandRejected:
    publication = publication_id("j1", output)
    return CommandRejected(
        command_id=publication, publication_id=publication, job_id="j1", reason="no manifest", retryable=retryable
    )


def running(nodes: int = 1) -> Job:
    """A job whose first attempt runs, with the run `run` at every rank."""
    job = tell(a_job(nodes=nodes), dispatch(*(f"n{rank}" for rank in range(nodes))))
    return tell(job, *(started(rank=rank) for rank in range(nodes)))
