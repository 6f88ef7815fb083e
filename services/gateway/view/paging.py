"""Pages of lists, ordered by a key that the client can hand back as `after`. Ids sort by the time of their making."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, Select

T = TypeVar("T")
Order = Literal["asc", "desc"]


@dataclass(frozen=True)
class Page(Generic[T]):
    items: Sequence[T]
    has_more: bool


def page(
    sql: Connection, query: Select[Any], key: ColumnElement[Any], *, after: str | None, limit: int, order: Order
) -> Page[Row[Any]]:
    """`limit` rows of the query ordered by the key, beginning behind `after`, which need not exist any more."""
    if after is not None:
        query = query.where(key > after if order == "asc" else key < after)
    rows = sql.execute(query.order_by(key.asc() if order == "asc" else key.desc()).limit(limit + 1)).all()
    return Page(rows[:limit], len(rows) > limit)
