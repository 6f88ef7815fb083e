"""The table is total, and keeps what jobs are promised."""

from __future__ import annotations

from datetime import timedelta
from typing import get_args

import pytest

from services.scheduler.domain import (
    AttemptChanged,
    Job,
    JobChanged,
    PublishOutput,
    Transitioned,
    desired_attempt,
    publication_id,
    publish_command,
)
from services.scheduler.inputs import AnswerOverdue, AttemptLost, BackoffOver, Internal, StopOverdue, Waits
from services.scheduler.rules import stay
from services.scheduler.transitions import ROWS, TABLE
from shared.contracts import artifacts, jobs
from shared.contracts.jobs import CancelJob, FailureReason, JobStatus, PauseJob, ResumeJob, RunMessage, Wish
from tests.unit.scheduler.jobs import (
    NOW,
    a_job,
    dispatch,
    done,
    failed,
    rejected,
    running,
    saved,
    started,
    stopped,
    succeeded,
    tell,
    told,
)

CANCEL, PAUSE, RESUME = CancelJob(job_id="j1"), PauseJob(job_id="j1"), ResumeJob(job_id="j1")


def lost(attempt: int = 1) -> AttemptLost:
    return AttemptLost(attempt, "the node n1 was silent for 30 s")


# ── The table ──


def test_every_message_has_an_entry_in_every_status() -> None:
    seen_by_jobs = {
        jobs.SubmitJob, jobs.CancelJob, jobs.PauseJob, jobs.ResumeJob, jobs.AttemptStarted, jobs.CheckpointSaved,
        jobs.AttemptSucceeded, jobs.AttemptFailed, jobs.AttemptStopped,
        artifacts.CommandDone, artifacts.CommandRejected, *get_args(Internal),
    }  # fmt: skip
    assert set(TABLE) == {(status, message) for status in JobStatus for message in seen_by_jobs}


def test_every_event_of_a_run_is_in_the_table_or_known_to_be_none_of_the_schedulers() -> None:
    not_for_the_scheduler = {jobs.Progress, jobs.LogLines}
    assert set(RunMessage.__subclasses__()) - not_for_the_scheduler <= set(ROWS)


@pytest.mark.parametrize("status", sorted(jobs.TERMINAL))
def test_terminal_is_final(status: JobStatus) -> None:
    assert all(TABLE[status, message] is stay for message in ROWS)


def test_what_could_start_again_is_said_though_the_reason_is_the_same() -> None:
    waits = tell(a_job(), Waits("needs 4 devices", placeable=False))
    assert not waits.placeable
    assert tell(waits, Waits("needs 4 devices")).placeable
    assert tell(waits, Waits("needs 4 devices", placeable=False)) is waits


def test_a_resumed_job_is_not_held_for_one_that_never_fits() -> None:
    assert tell(a_job(), Waits("needs 4 devices", placeable=False), PAUSE, RESUME).placeable


# ── The way of a job that goes well ──


def test_a_job_runs_publishes_and_succeeds() -> None:
    job = a_job()
    statuses = [job.status]
    for message in (dispatch(), started(), succeeded(), done()):
        job = tell(job, message)
        statuses.append(job.status)
    assert statuses == ["queued", "starting", "running", "publishing", "succeeded"]
    assert [pin.ref for pin in job.published.values()] == ["out@1"]


def test_a_change_is_told_to_readers_workers_and_as_an_event() -> None:
    job, effects = told(a_job(), dispatch())
    assert effects == [JobChanged(), AttemptChanged(), Transitioned(JobStatus.queued)]
    wanted = desired_attempt(job)
    assert wanted
    assert (wanted.attempt, wanted.wish, wanted.version) == (1, Wish.run, job.version)


def test_a_job_without_outputs_succeeds_at_once() -> None:
    assert tell(running(), succeeded(outputs=())).status == "succeeded"


def test_versions_only_grow_and_only_with_a_change() -> None:
    job = running()
    assert tell(job, started()).version == job.version
    assert tell(job, saved(1)).version == job.version + 1


# ── The fence ──


def test_the_first_run_of_an_attempt_is_accepted_and_no_other() -> None:
    job = tell(a_job(), dispatch(), started(run="first"), started(run="second"))
    assert job.runs == {0: "first"}


def test_a_run_that_is_not_accepted_is_told_again_that_nobody_wants_it() -> None:
    job, effects = told(running(), started(run="other"))
    assert effects == [AttemptChanged()]
    assert desired_attempt(job).accepted == {0: "run"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "said", [succeeded(run="other"), failed(run="other"), saved(9, run="other"), stopped(run="other")]
)
def test_what_another_run_says_changes_nothing(said: RunMessage) -> None:
    job = running()
    assert told(job, said) == (job, [])


@pytest.mark.parametrize("said", [started(1, "late"), succeeded(1), failed(1), saved(9, 1), stopped(1), lost(1)])
def test_what_an_older_attempt_says_changes_nothing(said: RunMessage) -> None:
    job = tell(running(), lost(), dispatch("n2"), started(2, "run2"))
    assert tell(job, said) is job


def test_a_repeat_of_an_accepted_start_says_nothing_new() -> None:
    job = running()
    assert told(job, started()) == (job, [])


# ── Cancel ──


@pytest.mark.parametrize(
    "job", [a_job(), tell(running(), lost(), dispatch(), started(2), lost(2)), tell(a_job(), PAUSE)]
)
def test_a_job_that_waits_is_cancelled_at_once(job: Job) -> None:
    assert tell(job, CANCEL).status == "cancelled"


def test_a_running_job_is_asked_to_stop_and_then_cancelled() -> None:
    job = tell(running(), CANCEL)
    assert (job.status, job.wish) == ("cancelling", Wish.cancel)
    assert tell(job, stopped()).status == "cancelled"


def test_an_attempt_that_nobody_took_up_is_cancelled_without_waiting() -> None:
    job = tell(a_job(), dispatch(), CANCEL)
    assert job.status == "cancelled"
    assert desired_attempt(job) is None


def test_a_success_that_comes_after_the_cancel_is_dropped() -> None:
    job = tell(running(), CANCEL, succeeded())
    assert (job.status, job.outputs) == ("cancelled", [])


def test_a_cancel_is_too_late_once_the_outputs_are_being_published() -> None:
    job = tell(running(), succeeded())
    assert told(job, CANCEL) == (job, [])
    assert tell(job, CANCEL, done()).status == "succeeded"


@pytest.mark.parametrize("ending", [lost(), failed(), failed(retryable=False), StopOverdue(1)])
def test_however_an_attempt_ends_while_cancelling_the_job_is_cancelled(ending: AttemptLost) -> None:
    assert tell(running(), CANCEL, ending).status == "cancelled"


# ── Pause and resume ──


def test_a_queued_job_pauses_at_once_and_queues_again() -> None:
    job = tell(a_job(), PAUSE)
    assert job.status == "paused"
    assert tell(job, RESUME).status == "queued"


def test_a_running_job_saves_pauses_and_goes_on_from_its_checkpoint() -> None:
    job = tell(running(), PAUSE)
    assert (job.status, job.wish) == ("pausing", Wish.pause)
    job = tell(job, saved(7), stopped(wish=Wish.pause))
    assert job.status == "paused"
    assert desired_attempt(job).wish is Wish.none  # type: ignore[union-attr]
    job = tell(job, RESUME, dispatch("n2"))
    assert desired_attempt(job).resume_from.step == 7  # type: ignore[union-attr]


def test_a_worker_lost_while_pausing_means_paused() -> None:
    assert tell(running(), PAUSE, lost()).status == "paused"


def test_a_resume_that_comes_while_pausing_is_not_forgotten() -> None:
    assert tell(running(), PAUSE, RESUME, stopped(wish=Wish.pause)).status == "queued"
    assert tell(running(), PAUSE, RESUME, PAUSE, stopped(wish=Wish.pause)).status == "paused"


def test_a_job_that_finishes_before_it_could_pause_has_finished() -> None:
    assert tell(running(), PAUSE, succeeded()).status == "publishing"


def test_a_user_error_while_pausing_still_fails_the_job() -> None:
    assert tell(running(), PAUSE, failed(retryable=False)).status == "failed"
    assert tell(running(), PAUSE, failed(retryable=True)).status == "paused"


# ── Failures ──


def test_a_user_error_is_not_retried_and_says_what_happened() -> None:
    job = tell(running(), failed(retryable=False))
    assert (job.status, job.reason) == ("failed", "line 3 is no JSON")
    assert job.failure
    assert job.failure.reason is FailureReason.bad_data


def test_the_first_retry_after_a_loss_is_immediate_and_later_ones_back_off() -> None:
    job = tell(running(), lost())
    assert (job.status, job.lost) == ("queued", 1)
    job = tell(job, dispatch(), started(2), lost(2))
    assert (job.status, job.not_before) == ("backoff", NOW + timedelta(seconds=2))
    job = tell(job, BackoffOver(), dispatch(), started(3), lost(3))
    assert job.not_before == NOW + timedelta(seconds=4)


def test_the_backoff_ends_at_five_minutes() -> None:
    job = running().changed(crashes=1)
    long_ago = tell(job, failed())
    assert long_ago.not_before == NOW + timedelta(seconds=4)
    assert tell(running().changed(lost=2), lost()).not_before == NOW + timedelta(seconds=4)


def test_a_job_fails_when_it_has_lost_its_worker_too_often() -> None:
    job = running().changed(lost=3)
    job = tell(job, lost())
    assert job.status == "failed"
    assert job.failure
    assert job.failure.reason is FailureReason.lost
    assert "4 times" in job.failure.message


def test_losses_and_crashes_are_counted_apart() -> None:
    job = tell(running().changed(lost=3), failed())
    assert (job.status, job.lost, job.crashes) == ("backoff", 3, 1)
    job = tell(running().changed(crashes=2), lost())
    assert (job.status, job.lost, job.crashes) == ("queued", 1, 2)
    assert tell(running().changed(crashes=2), failed()).status == "failed"


def test_a_run_that_is_given_back_counts_as_lost_and_not_as_crashed() -> None:
    job = running().changed(crashes=2)
    for attempt in (1, 2, 3):
        job = tell(job, failed(attempt, lost=True), BackoffOver(), dispatch(), started(attempt + 1))
    assert (job.status, job.lost, job.crashes) == ("running", 3, 2)
    assert [attempt.outcome for attempt in job.attempts] == ["lost", "lost", "lost", ""]
    job = tell(job, failed(4, lost=True))
    assert job.status == "failed"
    assert job.failure
    assert job.failure.reason is FailureReason.lost
    assert "4 times" in job.failure.message
    assert "line 3 is no JSON" in job.failure.message


def test_a_run_that_is_given_back_goes_on_at_once_and_keeps_its_word() -> None:
    job = tell(running(), failed(lost=True))
    assert (job.status, job.lost) == ("queued", 1)
    assert job.attempts[-1].failure == failed(lost=True).failure
    assert tell(job, dispatch(), started(2), failed(2, lost=True)).not_before == NOW + timedelta(seconds=2)


def test_a_new_checkpoint_resets_both_counts_and_an_old_one_neither() -> None:
    job = running().changed(lost=2, crashes=2)
    assert (tell(job, saved(5)).lost, tell(job, saved(5)).crashes) == (0, 0)
    further = tell(job, saved(5)).changed(lost=2, crashes=2)
    again = tell(further, saved(5), saved(4))
    assert (again.lost, again.crashes) == (2, 2)


def test_an_attempt_that_never_started_counts_in_neither() -> None:
    job = tell(a_job(), dispatch(), lost())
    assert (job.status, job.lost, job.crashes) == ("queued", 0, 0)


def test_a_worker_that_is_shut_down_loses_the_attempt() -> None:
    job = tell(running(), stopped(wish=Wish.none))
    assert (job.status, job.lost) == ("queued", 1)


def test_a_loss_does_not_send_a_job_to_the_end_of_the_queue() -> None:
    assert tell(running(), lost(), after_s=100).queued_at == NOW


def test_the_last_three_checkpoints_are_kept_and_the_newest_is_resumed_from() -> None:
    job = tell(running(), *(saved(step) for step in range(1, 6)))
    assert [ref.step for ref in job.checkpoints] == [3, 4, 5]
    job = tell(job, lost(), dispatch("n2"))
    assert desired_attempt(job).resume_from.step == 5  # type: ignore[union-attr]


def test_a_checkpoint_that_comes_again_after_newer_ones_is_not_taken_for_the_newest() -> None:
    job = tell(running(), *(saved(step) for step in range(1, 6)))
    assert tell(job, saved(1)) is job


# ── Gangs ──


def test_a_gang_runs_once_all_its_ranks_are_accepted() -> None:
    job = tell(a_job(nodes=2), dispatch("a", "b"), started(rank=1))
    assert job.status == "starting"
    assert tell(job, started(rank=0)).status == "running"


def test_the_ranks_of_a_gang_are_told_where_rank_0_of_their_attempt_listens() -> None:
    listening = started(rank=0).changed(meeting="10.0.0.7:40123")
    job = tell(a_job(nodes=2), dispatch("a", "b"), started(rank=1))
    assert not desired_attempt(job).meeting  # type: ignore[union-attr]
    job = tell(job, listening)
    assert desired_attempt(job).meeting == "10.0.0.7:40123"  # type: ignore[union-attr]
    job = tell(job, failed(rank=1), BackoffOver(), dispatch("a", "b"))
    assert not desired_attempt(job).meeting  # type: ignore[union-attr]


def test_rank_0_speaks_for_the_success_of_a_gang() -> None:
    job = running(nodes=2)
    assert tell(job, succeeded(rank=1)).status == "running"
    assert tell(job, succeeded(rank=0)).status == "publishing"


def test_any_rank_that_fails_ends_the_attempt_and_the_others_are_told() -> None:
    job = tell(running(nodes=2), failed(rank=1))
    assert job.status == "backoff"
    assert desired_attempt(job).wish is Wish.none  # type: ignore[union-attr]


def test_a_pausing_gang_waits_for_the_rank_that_saves() -> None:
    job = tell(running(nodes=2), PAUSE, stopped(rank=1))
    assert job.status == "pausing"
    assert tell(job, stopped(rank=0)).status == "paused"


# ── Publishing ──


def test_every_attempt_publishes_an_output_under_the_same_id() -> None:
    _, effects = told(running(), succeeded())
    published = [effect.output for effect in effects if isinstance(effect, PublishOutput)]
    assert [output.name for output in published] == ["out"]
    command = publish_command(running(), published[0])
    assert command.publication_id == publication_id("j1", "out")


def test_a_job_succeeds_when_the_registry_has_all_its_outputs() -> None:
    job = tell(running(), succeeded(outputs=("adapter", "merged")), done("adapter"))
    assert job.status == "publishing"
    assert tell(job, done("adapter")) is job
    assert tell(job, done("merged")).status == "succeeded"


def test_an_unanswered_publication_is_asked_for_again_and_an_answered_one_is_not() -> None:
    job = tell(running(), succeeded(outputs=("adapter", "merged")), done("adapter"))
    job, effects = told(job, AnswerOverdue())
    assert [effect.output.name for effect in effects if isinstance(effect, PublishOutput)] == ["merged"]
    assert job.not_before
    assert job.not_before > NOW + timedelta(seconds=10)


def test_a_refused_output_fails_the_job_with_the_registrys_reason() -> None:
    job = tell(running(), succeeded(), rejected())
    assert job.status == "failed"
    assert job.failure
    assert job.failure.reason is FailureReason.publish_rejected
    assert "no manifest" in job.reason


def test_a_refusal_that_may_pass_is_tried_again() -> None:
    job = tell(running(), succeeded(), rejected(retryable=True))
    assert job.status == "publishing"
    assert job.not_before
    assert tell(job, done()).status == "succeeded"


def test_readers_see_why_a_job_waits() -> None:
    job = tell(a_job(), Waits("waits for a trainer node"))
    assert job.reason == "waits for a trainer node"
    assert tell(job, Waits("waits for a trainer node")) is job
