"""A log topic that was wiped counts from zero again: what the records before the wipe must make way for.

Positions are the records' keys and their readers' cursors. Were old records left where they are, new ones would pass
for repeats of them, and stand before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, select, update
from structlog import get_logger

from services.gateway.tables import job_records

log = get_logger("gateway.view")

Partition = tuple[str, int]


class End(NamedTuple):
    """The record that is furthest in a partition."""

    pos: int
    at: datetime


class Rewinding:
    """Remembers how far each partition goes, so that the tables are asked only where a batch begins before that."""

    def __init__(self) -> None:
        self._furthest: dict[Partition, int] = {}

    def make_way(self, sql: Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Before these rows are inserted: move older ones before position 0 where the rows come from a topic that was
        made anew. Each partition's rows in the order of their positions."""
        of_partition = itemgetter("topic", "part")
        for partition, group in groupby(sorted(rows, key=itemgetter("topic", "part", "pos")), of_partition):
            mine = list(group)
            first, furthest = mine[0]["pos"], mine[-1]["pos"]
            if first <= self._furthest.get(partition, first) and (end := _end(sql, partition)):
                if _any_news(sql, partition, mine, end):
                    log.warning("topic_made_anew", topic=partition[0], partition=partition[1])
                    _move_before(sql, partition, end.pos + 1)
                else:
                    furthest = max(furthest, end.pos)
            self._furthest[partition] = furthest


def _end(sql: Connection, partition: Partition) -> End | None:
    newest = select(job_records.c.pos, job_records.c.at).where(*_in(partition)).order_by(job_records.c.pos.desc())
    row = sql.execute(newest.limit(1)).one_or_none()
    return End(row.pos, row.at) if row else None


def _any_news(sql: Connection, partition: Partition, rows: Sequence[dict[str, Any]], end: End) -> bool:
    """Whether one of the rows lies where the topic was read already, and is none of what was read there.

    Where nothing lies by now, a repeat of what was deleted meanwhile is told by its age: it is no newer than the
    furthest record. Elsewhere age says nothing: a run may have kept back what it said long before the wipe.
    """
    early = [row for row in rows if row["pos"] <= end.pos]
    columns = job_records.c.pos, job_records.c.job_id, job_records.c.type, job_records.c.at
    places = job_records.c.pos.in_([row["pos"] for row in early])
    known = {row.pos: tuple(row) for row in sql.execute(select(*columns).where(*_in(partition), places))}
    return any(
        known[row["pos"]] != (row["pos"], row["job_id"], row["type"], row["at"])
        if row["pos"] in known
        else row["at"] > end.at
        for row in early
    )


def _move_before(sql: Connection, partition: Partition, by: int) -> None:
    """By way of a partition that nobody has, so that no record meets another on its way."""
    topic, part = partition
    aside = (topic, -1 - part)
    sql.execute(update(job_records).where(*_in(partition)).values(part=aside[1], pos=job_records.c.pos - by))
    sql.execute(update(job_records).where(*_in(aside)).values(part=part))


def _in(partition: Partition) -> tuple[Any, Any]:
    return job_records.c.topic == partition[0], job_records.c.part == partition[1]
