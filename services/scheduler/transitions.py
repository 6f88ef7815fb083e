# ruff: noqa: E501  the table reads best as one grid
"""How a job moves: `TABLE` says what every message does in every status, `rules` says how. Pure.

    queued ─▶ starting ─▶ running ─▶ publishing ─▶ succeeded
      ▲           │          │├─ pausing ─▶ paused ─(resume)─▶ queued
      │           │          │└─ cancelling ─▶ cancelled
      └─ backoff ─┴──lost────┴─ attempts used up, or not retryable ─▶ failed

Three things keep it safe whatever is lost, doubled or late: terminal is final, an attempt accepts one run per rank
(the fence), and everything else changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.scheduler.domain import (
    AttemptChanged,
    Effect,
    Job,
    JobChanged,
    PublishOutput,
    Transitioned,
)
from services.scheduler.inputs import AnswerOverdue, AttemptLost, BackoffOver, Dispatch, Internal, StopOverdue, Waits
from services.scheduler.rules import (
    Moment,
    accept,
    ask_cancel,
    ask_pause,
    cancel_now,
    cancelled,
    dispatch,
    fail,
    fail_while_pausing,
    keep_checkpoint,
    lose,
    output_published,
    output_rejected,
    pause_now,
    paused,
    publish_again,
    queue_again,
    resume,
    resume_later,
    stay,
    stay_paused,
    stopped_unasked,
    stopped_while_pausing,
    succeed,
    too_late_to_cancel,
    wait,
)
from shared.contracts.artifacts import CommandDone, CommandRejected
from shared.contracts.jobs import (
    AttemptFailed,
    AttemptStarted,
    AttemptStopped,
    AttemptSucceeded,
    CancelJob,
    CheckpointSaved,
    JobStatus,
    PauseJob,
    ResumeJob,
    RunMessage,
    SubmitJob,
)
from shared.contracts.message import Message

Rule = Callable[[Job, Any, Moment], Job]
Input = Message | Internal

# fmt: off
____ = stay
COLUMNS = (
    JobStatus.queued, JobStatus.backoff, JobStatus.paused, JobStatus.starting, JobStatus.running,
    JobStatus.pausing, JobStatus.cancelling, JobStatus.publishing,
)
"""The statuses that anything can happen in. In the terminal ones nothing does."""

ROWS: dict[type, tuple[Rule, ...]] = {
    #                 queued      backoff      paused      starting         running          pausing                cancelling       publishing
    SubmitJob:        (____,       ____,        ____,       ____,            ____,            ____,                  ____,            ____),
    CancelJob:        (cancel_now, cancel_now,  cancel_now, ask_cancel,      ask_cancel,      ask_cancel,            ____,            too_late_to_cancel),
    PauseJob:         (pause_now,  pause_now,   ____,       ask_pause,       ask_pause,       stay_paused,           ____,            ____),
    ResumeJob:        (____,       ____,        resume,     ____,            ____,            resume_later,          ____,            ____),
    Dispatch:         (dispatch,   ____,        ____,       ____,            ____,            ____,                  ____,            ____),
    Waits:            (wait,       ____,        ____,       ____,            ____,            ____,                  ____,            ____),
    BackoffOver:      (____,       queue_again, ____,       ____,            ____,            ____,                  ____,            ____),
    AttemptStarted:   (____,       ____,        ____,       accept,          ____,            accept,                accept,          ____),
    CheckpointSaved:  (____,       ____,        ____,       keep_checkpoint, keep_checkpoint, keep_checkpoint,       keep_checkpoint, ____),
    AttemptSucceeded: (____,       ____,        ____,       succeed,         succeed,         succeed,               cancelled,       ____),
    AttemptFailed:    (____,       ____,        ____,       fail,            fail,            fail_while_pausing,    cancelled,       ____),
    AttemptStopped:   (____,       ____,        ____,       stopped_unasked, stopped_unasked, stopped_while_pausing, cancelled,       ____),
    AttemptLost:      (____,       ____,        ____,       lose,            lose,            paused,                cancelled,       ____),
    StopOverdue:      (____,       ____,        ____,       ____,            ____,            paused,                cancelled,       ____),
    CommandDone:      (____,       ____,        ____,       ____,            ____,            ____,                  ____,            output_published),
    CommandRejected:  (____,       ____,        ____,       ____,            ____,            ____,                  ____,            output_rejected),
    AnswerOverdue:    (____,       ____,        ____,       ____,            ____,            ____,                  ____,            publish_again),
}
# fmt: on

TABLE: dict[tuple[JobStatus, type], Rule] = {
    (status, message): dict(zip(COLUMNS, row, strict=True)).get(status, stay)
    for message, row in ROWS.items()
    for status in JobStatus
}


def transition(job: Job, message: Input, at: Moment) -> tuple[Job, list[Effect]]:
    """The job after the message, and what follows from it. The same object when nothing changes.

    Raises KeyError for a message that is not in the table: not one that a job can be told.
    """
    rule = TABLE[job.status, type(message)]
    after = rule(job, message, at) if may_speak(job, message) else job
    if after is job:
        return job, [AttemptChanged()] if is_stray(job, message) else []
    after = after.changed(version=job.version + 1)
    if after.wanted != job.wanted:
        after = after.changed(desired_version=after.version)
    return after, effects(job, after)


def may_speak(job: Job, message: Input) -> bool:
    """The fence: of what is said about attempts, only the current one and its accepted runs are heard."""
    match message:
        case AttemptStarted():
            seats = [place.rank for place in job.places]
            return message.attempt == job.attempt and message.rank in seats and message.rank not in job.runs
        case RunMessage():
            return message.attempt == job.attempt and job.runs.get(message.rank) == message.run_id
        case AttemptLost() | StopOverdue():
            return message.attempt == job.attempt
    return True


def is_stray(job: Job, message: Input) -> bool:
    """A run has started that was never accepted: it is told again that nobody wants it."""
    if not isinstance(message, AttemptStarted):
        return False
    accepted = [attempt.runs.get(message.rank) for attempt in job.attempts if attempt.attempt == message.attempt]
    return message.run_id not in accepted


def effects(before: Job, after: Job) -> list[Effect]:
    """What follows from a change, read off its two ends."""
    found: list[Effect] = [JobChanged()]
    if after.desired_version != before.desired_version:
        found.append(AttemptChanged())
    if after.status is not before.status:
        found.append(Transitioned(before.status))
    if after.publish_tries != before.publish_tries:
        found.extend(PublishOutput(output) for output in after.unpublished)
    return found
