"""Readers see what accepted runs say, and nothing out of order."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.gateway.view.records import JobRecord, Shown, shown
from shared.bus.port import Position
from shared.contracts.jobs import AttemptState, JobSpec, JobState, JobStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def record(attempt: int | None = 1, run_id: str | None = "a", rank: int = 0) -> JobRecord:
    return JobRecord(Position(0, 1), "AttemptStarted", NOW, attempt, rank, run_id, {})


def state(status: JobStatus = JobStatus.starting, attempt: int = 1, **first: object) -> JobState:
    attempts = [AttemptState.model_validate({"attempt": 1, "dispatched_at": NOW, **first})]
    return JobState(
        job_id="j",
        version=1,
        spec=JobSpec(type="probe"),
        status=status,
        attempt=attempt,
        attempts=attempts,
        created_at=NOW,
    )


@pytest.mark.parametrize(
    ("known", "said", "verdict"),
    [
        (state(runs={0: "a"}), record(run_id="a"), Shown.yes),
        (state(runs={0: "a"}), record(run_id="b"), Shown.no),
        (state(runs={0: "a"}), record(run_id="b", rank=1), Shown.not_decided),
        (state(), record(), Shown.not_decided),
        (state(ended_at=NOW), record(), Shown.no),
        (state(JobStatus.cancelled), record(), Shown.no),
        (state(), record(attempt=2), Shown.not_decided),
        (state(JobStatus.failed), record(attempt=2), Shown.no),
        (state(attempt=3), record(attempt=2), Shown.no),
        (state(), record(attempt=None, run_id=None), Shown.yes),
        (state(), record(attempt=1, run_id=None), Shown.yes),
    ],
)
def test_the_run_that_the_scheduler_accepted_is_the_one_shown(known: JobState, said: JobRecord, verdict: Shown) -> None:
    assert shown(said, known) is verdict
