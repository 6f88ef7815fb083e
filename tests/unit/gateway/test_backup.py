"""What a restore makes of the gateway's rows: nothing that was accepted is lost, and no history either."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select

from services.gateway.backup import settle
from services.gateway.tables import deployments, files, job_records, jobs, submissions
from services.gateway.view.saving import sweep_jobs
from shared.backup.system import Restored
from shared.bus.port import Position
from shared.contracts.jobs import JobTransitioned
from shared.db import open_database
from tests.databases import NewDatabase

NOW = datetime.now(UTC)


@pytest.fixture
def engine(new_database: NewDatabase) -> Engine:
    return open_database(new_database("gateway"))


def submission(command_id: str, resource_id: str = "", **changes: Any) -> dict[str, Any]:
    return {
        "command_id": command_id,
        "tenant": "default",
        "operation": "o",
        "body_hash": command_id,
        "subject": resource_id,
        "resource_id": resource_id,
        "topic": "jobs.commands",
        "command": b"",
        "until": "seen",
        "created_at": NOW,
        "next_at": NOW + timedelta(hours=1),
        "tries": 3,
        "published_at": NOW,
        "done_at": NOW,
        "retried": False,
    } | changes


def job(job_id: str, status: str = "running") -> dict[str, Any]:
    state = {"job_id": job_id}
    about = {"tenant": "default", "version": 7, "type": "probe", "priority": 0}
    return {"job_id": job_id, "status": status, "created_at": NOW, "state": state, **about}


def event(part: int, pos: int, job_id: str = "j", after: str = "running") -> dict[str, Any]:
    place = {"topic": "jobs.events", "part": part, "pos": pos}
    return {**place, "job_id": job_id, "type": JobTransitioned.__name__, "at": NOW, "body": {"after": after}}


def settled(engine: Engine, restored: Restored | None = None, **known: set[str]) -> None:
    with engine.begin() as sql:
        settle(sql, restored or Restored(NOW.timestamp(), **known))


def test_what_its_consumer_had_not_handled_goes_out_again(engine: Engine) -> None:
    pending = submission("pending", done_at=None)
    rows = [submission("handled"), submission("unheard"), pending, submission("refused", rejected="no")]
    rows += [submission("long ago", created_at=NOW - timedelta(days=9))]
    with engine.begin() as sql:
        for row in rows:
            sql.execute(insert(submissions).values(row))
    settled(engine, handled={"handled", "pending"})
    with engine.connect() as sql:
        due = select(submissions.c.command_id).where(
            submissions.c.done_at.is_(None),
            submissions.c.published_at.is_(None),
            submissions.c.next_at <= datetime.now(UTC),
        )
        assert set(sql.scalars(due)) == {"unheard", "pending"}


def test_a_file_that_the_registry_does_not_know_waits_for_it_again(engine: Engine) -> None:
    about = {"tenant": "default", "filename": "f", "purpose": "p", "bytes": 1, "created_at": NOW, "deleted": False}
    with engine.begin() as sql:
        for file_id in ("known", "unknown"):
            sql.execute(insert(files).values(file_id=file_id, status="processed", **about))
            sql.execute(insert(submissions).values(submission(f"publish {file_id}", file_id)))
    settled(engine, handled={"publish known"})
    with engine.connect() as sql:
        found = {row.file_id: row.status for row in sql.execute(select(files))}
        assert found == {"known": "processed", "unknown": "uploaded"}


def test_history_keeps_its_order_and_lies_before_all_that_a_new_bus_will_say(engine: Engine) -> None:
    with engine.begin() as sql:
        rows = [event(3, 5), event(3, 9, after="publishing"), event(0, 2, "other"), event(11, 0, "third")]
        sql.execute(insert(job_records), rows)
    for _ in range(2):  # a restored system is saved and restored in its turn
        settled(engine, jobs={"j", "other", "third"})
    with engine.begin() as sql:
        found = sql.execute(select(job_records).order_by(job_records.c.part, job_records.c.pos)).all()
        assert [Position(row.part, row.pos) for row in found] == [Position(0, pos) for pos in (-4, -3, -2, -1)]
        assert [row.body["after"] for row in found if row.job_id == "j"] == ["running", "publishing"]
        assert [Position.parse(str(Position(row.part, row.pos))) for row in found] == [
            Position(row.part, row.pos) for row in found
        ]
        sql.execute(insert(job_records), [event(0, 0), event(3, 5)])  # the new bus begins at the old places


def test_a_bus_that_shows_no_job_yet_takes_no_history_away(engine: Engine) -> None:
    with engine.begin() as sql:
        sql.execute(insert(jobs).values(job("j", "succeeded")))
        sql.execute(insert(job_records), [event(0, 1)])
    settled(engine, jobs={"j"})
    with engine.begin() as sql:
        sweep_jobs(sql, set(), datetime.now(UTC) + timedelta(seconds=1))
        assert sql.execute(select(job_records.c.job_id)).scalars().all() == ["j"]
        assert sql.execute(select(jobs.c.version)).scalars().all() == [0]


def test_what_the_truth_does_not_know_is_shown_no_longer(engine: Engine) -> None:
    with engine.begin() as sql:
        for job_id in ("known", "purged", "unheard"):
            sql.execute(insert(jobs).values(job(job_id)))
        sql.execute(insert(submissions).values(submission("submit", "unheard")))
        for name, version in (("asked for", 0), ("shown", 4)):
            about = {"tenant": "default", "name": name, "version": version, "created_at": NOW, "deleting": False}
            sql.execute(insert(deployments).values(about))
    settled(engine, jobs={"known"})
    with engine.connect() as sql:
        assert set(sql.scalars(select(jobs.c.job_id))) == {"known", "unheard"}
        assert set(sql.scalars(select(deployments.c.name))) == {"asked for"}


def test_a_job_that_goes_on_has_no_ending_behind_it(engine: Engine) -> None:
    with engine.begin() as sql:
        sql.execute(insert(job_records), [event(0, 1), event(0, 2, after="succeeded"), event(1, 1, "o", "succeeded")])
    settled(engine, jobs={"j", "o"}, unfinished={"j"})
    with engine.connect() as sql:
        told = sql.execute(select(job_records.c.job_id, job_records.c.body)).all()
        assert sorted((row.job_id, row.body["after"]) for row in told) == [("j", "running"), ("o", "succeeded")]
