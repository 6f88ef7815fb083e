"""What the few statements of our own do alike on SQLite and on PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event, select

from services.gateway.sql import upsert_all, writing
from services.gateway.tables import job_labels
from shared.db import open_database
from tests.databases import NewDatabase


def test_many_rows_are_given_to_the_driver_at_once_and_a_key_may_come_twice(
    new_database: NewDatabase, request: pytest.FixtureRequest
) -> None:
    engine = open_database(new_database("gateway"))
    request.addfinalizer(engine.dispose)
    given: list[tuple[int, bool]] = []

    def note(_: object, __: object, ___: str, parameters: Any, ____: object, many: bool) -> None:
        given.append((len(parameters), many))

    rows = [("j1", "a", "old"), ("j2", "a", "only"), ("j1", "a", "new")]
    with writing(engine) as sql:
        event.listen(sql, "before_cursor_execute", note)
        names = ("job_id", "label", "value")
        upsert_all(sql, job_labels, [dict(zip(names, row, strict=True)) for row in rows])
        assert given == [(3, True)]
        kept = sql.execute(select(job_labels.c.job_id, job_labels.c.value).order_by(job_labels.c.job_id)).all()
    assert [tuple(row) for row in kept] == [("j1", "new"), ("j2", "only")]
