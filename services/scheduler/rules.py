"""What each message does to a job, one function a rule. `transitions.TABLE` says which applies when. Pure.

A rule is given the job, the message and the moment, and returns the job as it is afterwards, or the same object when
nothing changes. The fence has been checked: a run that speaks here is the accepted one of the current attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from services.scheduler.domain import KEPT_ATTEMPTS, KEPT_CHECKPOINTS, Job, publication_id
from services.scheduler.inputs import AttemptLost, Dispatch, Waits
from shared.contracts.artifacts import CommandDone, CommandRejected
from shared.contracts.jobs import (
    AttemptFailed,
    AttemptStarted,
    AttemptState,
    AttemptStopped,
    AttemptSucceeded,
    CheckpointSaved,
    Failure,
    FailureReason,
    JobStatus,
)

ITS_TURN = "waits for its turn"
MAX_BACKOFF_S = 300.0
FIRST_ANSWER_S = 10.0
"""A publication that is unanswered for so long is sent again; the pause doubles up to `MAX_BACKOFF_S`."""


@dataclass(frozen=True)
class Limits:
    """How often a job may fail without a new checkpoint, and the first pause before a retry."""

    max_lost: int = 10
    max_crashes: int = 3
    backoff_s: float = 2.0


@dataclass(frozen=True)
class Moment:
    """What a rule may know besides job and message."""

    now: datetime
    limits: Limits = Limits()

    def after(self, seconds: float) -> datetime:
        return self.now + timedelta(seconds=seconds)


def stay(job: Job, _: Any, __: Moment) -> Job:
    """Nothing changes: a repeat, a late word, or a wish that makes no sense here."""
    return job


# ── Out of the queue ──


def dispatch(job: Job, order: Dispatch, at: Moment) -> Job:
    number = job.attempt + 1
    attempt = AttemptState(attempt=number, places=order.places, dispatched_at=at.now)
    return job.changed(
        status=JobStatus.starting,
        reason=f"starts on {_nodes(attempt)}",
        placeable=True,
        attempts=[*job.attempts, attempt][-KEPT_ATTEMPTS:],
        announced={},
        resume_from=job.checkpoints[-1] if job.checkpoints else None,
        meeting="",
    )


def wait(job: Job, why: Waits, _: Moment) -> Job:
    told = (job.reason, job.placeable) == (why.reason, why.placeable)
    return job if told else job.changed(reason=why.reason, placeable=why.placeable)


def queue_again(job: Job, _: Any, __: Moment) -> Job:
    """The pause is over; the place in the queue is the old one."""
    return job.changed(status=JobStatus.queued, not_before=None, reason=ITS_TURN, placeable=True)


# ── What runs say ──


def accept(job: Job, started: AttemptStarted, at: Moment) -> Job:
    """The first run of a rank is the one that counts. With all ranks there, the job runs."""
    assert job.current
    attempt = job.current.changed(
        runs={**job.runs, started.rank: started.run_id}, started_at=job.current.started_at or at.now
    )
    accepted = _newest(job, attempt).changed(
        announced={**job.announced, started.rank: started.at},
        started_at=job.started_at or at.now,
        meeting=job.meeting or started.meeting,
    )
    complete = len(attempt.runs) == len(attempt.places)
    if complete and job.status is JobStatus.starting:
        return accepted.changed(status=JobStatus.running, reason=f"runs on {_nodes(attempt)}")
    return accepted


def keep_checkpoint(job: Job, saved: CheckpointSaved, _: Moment) -> Job:
    """A checkpoint further than all before is progress: the counts of losses and crashes start anew."""
    if any(known.run_id == saved.run_id and known.step >= saved.checkpoint.step for known in job.checkpoints):
        return job  # a run saves in order, so this one came before
    furthest = max((known.step for known in job.checkpoints), default=-1)
    kept = job.changed(
        checkpoints=[*job.checkpoints, saved.checkpoint][-KEPT_CHECKPOINTS:],
        metrics={**job.metrics, **saved.checkpoint.metrics},
    )
    return kept.changed(lost=0, crashes=0) if saved.checkpoint.step > furthest else kept


def succeed(job: Job, success: AttemptSucceeded, at: Moment) -> Job:
    """Rank 0 speaks for the attempt. Its outputs become versions before the job has succeeded."""
    if success.rank != 0:
        return job
    done = _end_attempt(job, at, "succeeded").changed(
        outputs=list({output.name: output for output in success.outputs}.values()),
        metrics={**job.metrics, **success.metrics},
    )
    if not done.outputs:
        return _finish(done, JobStatus.succeeded, "succeeded", at)
    return done.changed(
        status=JobStatus.publishing,
        reason="registers what it made",
        publish_tries=1,
        not_before=at.after(FIRST_ANSWER_S),
    )


def fail(job: Job, failed: AttemptFailed, at: Moment) -> Job:
    """What the user must mend is final. A crash is tried again, so often and no more. A run that was given back, or
    whose store was away, is as good as lost."""
    if failed.retryable and failed.failure.reason is FailureReason.lost:
        return _lost(_end_attempt(job, at, "lost", failed.failure), failed.failure.message, at)
    ended = _end_attempt(job, at, "failed", failed.failure)
    if not failed.retryable:
        return _failed(ended, failed.failure, at)
    crashes = job.crashes + 1
    if crashes > at.limits.max_crashes:
        times = f"It crashed {crashes} times without a new checkpoint; the last time: {failed.failure.message}"
        return _failed(ended, failed.failure.changed(message=times), at)
    return _retry(ended.changed(crashes=crashes), _backoff_s(crashes, at), f"crashed: {failed.failure.message}", at)


def stopped_unasked(job: Job, stopped: AttemptStopped, at: Moment) -> Job:
    """The run ended though it should go on: its worker was shut down. As good as lost."""
    return lose(job, AttemptLost(stopped.attempt, "its worker was stopped"), at)


def lose(job: Job, loss: AttemptLost, at: Moment) -> Job:
    """The first retry is at once, later ones back off. An attempt that never started does not count."""
    failure = Failure(reason=FailureReason.lost, message=f"Attempt {loss.attempt} was lost: {loss.why}.")
    ended = _end_attempt(job, at, "lost", failure)
    if not job.runs:
        return _retry(ended, 0, f"not started: {loss.why}", at)
    return _lost(ended, loss.why, at)


# ── Pause and resume ──


def pause_now(job: Job, _: Any, __: Moment) -> Job:
    return job.changed(status=JobStatus.paused, not_before=None, reason="paused")


def ask_pause(job: Job, _: Any, at: Moment) -> Job:
    """Nothing to wait for where no run was accepted: a late one is told `none`."""
    if not job.runs:
        return pause_now(_end_attempt(job, at, "stopped"), None, at)
    return job.changed(status=JobStatus.pausing, reason="saves a checkpoint and pauses", resume_when_paused=False)


def stay_paused(job: Job, _: Any, __: Moment) -> Job:
    """Pause after a resume that came while pausing: the last word counts."""
    return job.changed(resume_when_paused=False) if job.resume_when_paused else job


def resume_later(job: Job, _: Any, __: Moment) -> Job:
    """The worker is already stopping: let it, and go on from there."""
    return job if job.resume_when_paused else job.changed(resume_when_paused=True)


def resume(job: Job, _: Any, at: Moment) -> Job:
    waits = job.changed(status=JobStatus.queued, reason=ITS_TURN, placeable=True)
    return waits.changed(queued_at=at.now, resume_when_paused=False)


def paused(job: Job, _: Any, at: Moment) -> Job:
    """The attempt is over, by its own word or for lack of it."""
    ended = pause_now(_end_attempt(job, at, "stopped"), None, at)
    return resume(ended, None, at) if job.resume_when_paused else ended


def stopped_while_pausing(job: Job, stopped: AttemptStopped, at: Moment) -> Job:
    """Rank 0 saves the checkpoint, so its word is waited for."""
    return paused(job, stopped, at) if stopped.rank == 0 or 0 not in job.runs else job


def fail_while_pausing(job: Job, failed: AttemptFailed, at: Moment) -> Job:
    return paused(job, failed, at) if failed.retryable else fail(job, failed, at)


# ── Cancel ──


def cancel_now(job: Job, _: Any, at: Moment) -> Job:
    return _finish(job, JobStatus.cancelled, "cancelled", at)


def ask_cancel(job: Job, _: Any, at: Moment) -> Job:
    """Nothing to wait for where no run was accepted: a late one meets the tombstone."""
    if not job.runs:
        return cancelled(job, None, at)
    return job.changed(status=JobStatus.cancelling, reason="stops, since it was cancelled")


def cancelled(job: Job, _: Any, at: Moment) -> Job:
    """However the attempt ended, a success included: the cancel came first."""
    return cancel_now(_end_attempt(job, at, "stopped"), None, at)


too_late_to_cancel = stay
"""From `publishing` on. The gateway refuses such a cancel when it sees the status; a late one changes nothing."""


# ── Publishing ──


def output_published(job: Job, done: CommandDone, at: Moment) -> Job:
    output = _output_of(job, done.publication_id)
    if output is None or done.artifact is None:
        return job
    job = job.changed(published={**job.published, output: done.artifact})
    if job.unpublished:
        return job
    return _finish(job, JobStatus.succeeded, f"made {', '.join(pin.ref for pin in job.published.values())}", at)


def output_rejected(job: Job, no: CommandRejected, at: Moment) -> Job:
    output = _output_of(job, no.publication_id)
    if output is None:
        return job
    if no.retryable:
        reason = f"registers what it made, again in a while: {no.reason}"
        return job if job.reason == reason else job.changed(reason=reason)
    failure = Failure(
        reason=FailureReason.publish_rejected, message=f"The registry refused the output {output!r}: {no.reason}"
    )
    return _failed(job, failure, at)


def publish_again(job: Job, _: Any, at: Moment) -> Job:
    pause_s = min(FIRST_ANSWER_S * 2.0**job.publish_tries, MAX_BACKOFF_S)
    return job.changed(publish_tries=job.publish_tries + 1, not_before=at.after(pause_s))


# ── Steps that several rules share ──


def _newest(job: Job, attempt: AttemptState) -> Job:
    return job.changed(attempts=[*job.attempts[:-1], attempt])


def _end_attempt(job: Job, at: Moment, outcome: str, failure: Failure | None = None) -> Job:
    assert job.current
    return _newest(job, job.current.changed(ended_at=at.now, outcome=outcome, failure=failure))


def _lost(job: Job, why: str, at: Moment) -> Job:
    """What follows from a lost attempt, ended by now."""
    lost, failure = job.lost + 1, job.attempts[-1].failure
    assert failure
    if lost > at.limits.max_lost:
        hint = failure.hint or "Look at the nodes' logs, let it save checkpoints more often, then retry the job."
        times = f"It lost its worker {lost} times without a new checkpoint; the last time: {failure.message}"
        return _failed(job, failure.changed(message=times, hint=hint), at)
    return _retry(job.changed(lost=lost), 0 if lost == 1 else _backoff_s(lost - 1, at), f"lost: {why}", at)


def _retry(job: Job, pause_s: float, why: str, at: Moment) -> Job:
    if pause_s <= 0:
        return job.changed(status=JobStatus.queued, reason=f"{ITS_TURN}; attempt {job.attempt} {why}")
    reason = f"tried again in {pause_s:.0f} s; attempt {job.attempt} {why}"
    return job.changed(status=JobStatus.backoff, not_before=at.after(pause_s), reason=reason)


def _backoff_s(failures: int, at: Moment) -> float:
    return float(min(at.limits.backoff_s * 2.0 ** (failures - 1), MAX_BACKOFF_S))


def _failed(job: Job, failure: Failure, at: Moment) -> Job:
    return _finish(job.changed(failure=failure), JobStatus.failed, failure.message, at)


def _finish(job: Job, status: JobStatus, reason: str, at: Moment) -> Job:
    return job.changed(status=status, reason=reason, finished_at=at.now, not_before=None)


def _output_of(job: Job, publication: str | None) -> str | None:
    """The unpublished output that a publication id stands for."""
    names = (output.name for output in job.unpublished)
    return next((name for name in names if publication_id(job.id, name) == publication), None)


def _nodes(attempt: AttemptState) -> str:
    return ", ".join(dict.fromkeys(place.node for place in attempt.places))
