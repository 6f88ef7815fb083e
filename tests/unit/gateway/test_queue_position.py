"""The place in the queue counts those that are in the way, and no others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from services.gateway.sql import writing
from services.gateway.view.jobs import Jobs
from services.gateway.view.saving import save_job
from shared.contracts.jobs import JobSpec, JobState, JobStatus
from shared.db import migrate, open_database
from tests.databases import NewDatabase

AT = datetime(2030, 1, 1, tzinfo=UTC)


def queued(number: int, **changes: object) -> JobState:
    fields = {"status": JobStatus.queued, "created_at": AT + timedelta(seconds=number), **changes}
    return JobState.model_validate({"job_id": f"job-{number}", "version": 1, "spec": JobSpec(type="probe"), **fields})


@pytest.fixture
def jobs(new_database: NewDatabase) -> Jobs:
    engine = open_database(new_database("gateway"))
    migrate(engine, "services.gateway.migrations")
    return Jobs(engine)


def positions(jobs: Jobs, *states: JobState) -> list[int | None]:
    with writing(jobs._engine) as sql:
        for state in states:
            save_job(sql, state)
    return [jobs.queue_position(state) for state in states]


def test_jobs_are_counted_by_priority_and_then_by_age(jobs: Jobs) -> None:
    urgent = queued(3, spec=JobSpec(type="probe", priority=5))
    assert positions(jobs, queued(1), queued(2), urgent) == [2, 3, 1]


def test_a_job_that_no_node_can_take_has_no_place_and_is_in_nobodys_way(jobs: Jobs) -> None:
    huge = queued(1, placeable=False, reason="needs 8 devices; the largest node has 2")
    assert positions(jobs, huge, queued(2), queued(3, status=JobStatus.running)) == [None, 1, None]


def test_a_job_has_a_place_again_once_a_node_came_that_can_take_it(jobs: Jobs) -> None:
    positions(jobs, queued(1, placeable=False), queued(2))
    assert positions(jobs, queued(1, version=2), queued(2)) == [1, 2]
