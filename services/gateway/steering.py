"""Cancel, pause and resume: commands about a job that is there."""

from __future__ import annotations

from services.gateway.errors import Conflict
from services.gateway.gateway import Gateway
from services.gateway.keys import Principal
from services.gateway.submissions import Asked, Order
from shared.contracts.jobs import CancelJob, JobState, JobStatus, PauseJob, ResumeJob
from shared.contracts.topics import JOBS_COMMANDS

Steer = type[CancelJob] | type[PauseJob] | type[ResumeJob]

TOO_LATE = frozenset({JobStatus.publishing, JobStatus.succeeded, JobStatus.failed, JobStatus.cancelled})
REFUSED: dict[Steer, frozenset[JobStatus]] = {
    CancelJob: TOO_LATE,
    PauseJob: TOO_LATE | {JobStatus.cancelling},
    ResumeJob: frozenset(JobStatus) - {JobStatus.paused, JobStatus.pausing},
}
"""In which states the gateway says no at once. What it lets through, the scheduler decides."""
HAPPENS_ALREADY: dict[Steer, frozenset[JobStatus]] = {
    CancelJob: frozenset({JobStatus.cancelling}),
    PauseJob: frozenset({JobStatus.paused, JobStatus.pausing}),
    ResumeJob: frozenset(),
}


def steer(here: Gateway, caller: Principal, asked: Asked, job_id: str, command: Steer) -> JobState:
    """Order it, unless it happens already or can no longer happen. The answer is the job as it is now."""
    state = here.view.jobs.get(caller.tenant, job_id)
    if here.submissions.earlier(asked) or state.status in HAPPENS_ALREADY[command]:
        return state
    if state.status in REFUSED[command]:
        raise Conflict(_why_not(command, state.status), param="job_id", code="wrong_status")
    order = Order(JOBS_COMMANDS, job_id, job_id, command(tenant=caller.tenant, job_id=job_id), until="published")
    here.submissions.accept(asked, order)
    return state


def _why_not(command: Steer, status: JobStatus) -> str:
    word = command.__name__.removesuffix("Job").lower()
    if status.terminal:
        return f"The job has ended ({status}); it is too late to {word} it."
    if status is JobStatus.publishing:
        return f"The job has done its work and publishes it; it is too late to {word} it."
    if command is ResumeJob:
        return f"The job is {status}, not paused; there is nothing to resume."
    return f"The job is {status} and cannot be {word}d now."
