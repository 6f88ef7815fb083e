"""Uploaded files, from the moment that they are in the store."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, func, insert, select, update

from services.gateway.errors import NotFound
from services.gateway.sql import reading
from services.gateway.tables import files
from services.gateway.view.paging import Order, Page, page


@dataclass(frozen=True)
class File:
    """`uploaded`: the registry has not answered yet; `processed`: it is an artifact; `error`: it was rejected."""

    file_id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_at: datetime
    status: str = "uploaded"
    status_details: str | None = None
    deleted: bool = False


class Files:
    """Queries over the table `files`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def find(self, tenant: str, file_id: str) -> File | None:
        query = select(files).where(files.c.file_id == file_id, files.c.tenant == tenant, ~files.c.deleted)
        with reading(self._engine) as sql:
            row = sql.execute(query).one_or_none()
        return _file(row) if row else None

    def get(self, tenant: str, file_id: str, param: str = "file_id") -> File:
        """Raises NotFound."""
        found = self.find(tenant, file_id)
        if found is None:
            raise NotFound(f"There is no file {file_id!r}.", param=param, code="file_not_found")
        return found

    def list(
        self, tenant: str, *, purpose: str | None, after: str | None, limit: int, order: Order = "desc"
    ) -> Page[File]:
        query = select(files).where(files.c.tenant == tenant, ~files.c.deleted)
        if purpose:
            query = query.where(files.c.purpose == purpose)
        with reading(self._engine) as sql:
            found = page(sql, query, files.c.file_id, after=after, limit=limit, order=order)
        return Page([_file(row) for row in found.items], found.has_more)

    def add(self, sql: Connection, file: File) -> None:
        sql.execute(insert(files).values(asdict(file)))

    def mark_deleted(self, sql: Connection, file: File) -> None:
        """Hide it at once; its row goes once there is no artifact of it."""
        mine = files.c.file_id == file.file_id
        sql.execute(delete(files).where(mine, files.c.status == "error"))
        sql.execute(update(files).where(mine).values(deleted=True))

    def unregistered_bytes(self, tenant: str) -> int:
        """Bytes of uploads that the registry does not count yet."""
        query = select(func.sum(files.c.bytes)).where(files.c.tenant == tenant, files.c.status == "uploaded")
        with reading(self._engine) as sql:
            return int(sql.execute(query).scalar() or 0)


def _file(row: Row[Any]) -> File:
    return File(**row._asdict())
