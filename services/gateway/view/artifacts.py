"""Artifacts as the registry shows them: versions, aliases, lineage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, func, select

from services.gateway.errors import NotFound
from services.gateway.sql import reading
from services.gateway.tables import artifact_aliases, artifact_parents, artifact_versions
from services.gateway.view.paging import Order, Page, page
from shared.contracts.artifacts import ArtifactVersionState, split_ref

INT32 = 2**31


class Artifacts:
    """Queries over what `registry.state` says."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def find(self, tenant: str, ref: str) -> ArtifactVersionState | None:
        """The version that `name@3`, `name@production` or `name` (its latest) means."""
        name, which = split_ref(ref)
        with reading(self._engine) as sql:
            version = _number(sql, tenant, name, which)
            return _version(sql, tenant, name, version) if version is not None else None

    def get(self, tenant: str, ref: str, param: str | None = "ref") -> ArtifactVersionState:
        """As `find`. Raises NotFound with what there is of that name."""
        found = self.find(tenant, ref)
        if found is None:
            raise NotFound(self._why_not(tenant, ref), param=param, code="artifact_not_found")
        return found

    def names(
        self, tenant: str, *, kinds: Sequence[str], after: str | None, limit: int, order: Order = "asc"
    ) -> Page[ArtifactVersionState]:
        """The newest version of every name, by name."""
        newest = (
            select(artifact_versions.c.name, func.max(artifact_versions.c.version).label("version"))
            .where(artifact_versions.c.tenant == tenant)
            .group_by(artifact_versions.c.name)
            .subquery()
        )
        same = and_(artifact_versions.c.name == newest.c.name, artifact_versions.c.version == newest.c.version)
        query = select(artifact_versions.c.state).join(newest, same).where(artifact_versions.c.tenant == tenant)
        if kinds:
            query = query.where(artifact_versions.c.kind.in_(kinds))
        column = artifact_versions.c.name
        with reading(self._engine) as sql:
            return _states(page(sql, query, column, after=after, limit=limit, order=order))

    def of_kinds(self, tenant: str, kinds: Sequence[str]) -> list[ArtifactVersionState]:
        """Every version of these kinds, newest first."""
        query = select(artifact_versions.c.state).where(
            artifact_versions.c.tenant == tenant, artifact_versions.c.kind.in_(kinds)
        )
        newest_first = artifact_versions.c.created_at.desc(), artifact_versions.c.name, artifact_versions.c.version
        with reading(self._engine) as sql:
            return [
                ArtifactVersionState.model_validate(row.state) for row in sql.execute(query.order_by(*newest_first))
            ]

    def versions(self, tenant: str, name: str) -> list[ArtifactVersionState]:
        """All versions of a name, newest first."""
        query = (
            select(artifact_versions.c.state)
            .where(artifact_versions.c.tenant == tenant, artifact_versions.c.name == name)
            .order_by(artifact_versions.c.version.desc())
        )
        with reading(self._engine) as sql:
            return [ArtifactVersionState.model_validate(row.state) for row in sql.execute(query)]

    def aliases(self, tenant: str, name: str) -> dict[str, int]:
        """Alias → version; `latest` is always there for a name that has versions."""
        with reading(self._engine) as sql:
            return _aliases(sql, tenant, name)

    def all_aliases(self, tenant: str) -> dict[str, dict[str, int]]:
        query = select(artifact_aliases).where(artifact_aliases.c.tenant == tenant)
        with reading(self._engine) as sql:
            return {row.name: row.aliases for row in sql.execute(query)}

    def children(self, tenant: str, ref: str) -> list[str]:
        """Refs of what was made from this version."""
        query = (
            select(artifact_parents.c.name, artifact_parents.c.version)
            .where(artifact_parents.c.tenant == tenant, artifact_parents.c.parent == ref)
            .order_by(artifact_parents.c.name, artifact_parents.c.version)
        )
        with reading(self._engine) as sql:
            return [f"{row.name}@{row.version}" for row in sql.execute(query)]

    def stored_bytes(self, tenant: str) -> int:
        query = select(func.sum(artifact_versions.c.size_bytes)).where(artifact_versions.c.tenant == tenant)
        with reading(self._engine) as sql:
            return int(sql.execute(query).scalar() or 0)

    def _why_not(self, tenant: str, ref: str) -> str:
        name, which = split_ref(ref)
        if not name:
            return f"{ref!r} names no artifact: a name comes first, as in 'name', 'name@3' or 'name@production'."
        versions = self.versions(tenant, name)
        if not versions:
            return f"There is no {'file' if name.startswith('file-') else 'artifact'} {name!r}."
        there = ", ".join(str(state.version) for state in versions[:5])
        aliases = ", ".join(sorted(self.aliases(tenant, name)))
        return f"{name!r} has no version or alias {which!r}; its newest versions are {there}, its aliases {aliases}."


def _number(sql: Connection, tenant: str, name: str, which: str | None) -> int | None:
    if which and which.isascii() and which.isdigit():
        return int(which) if len(which) < 10 or int(which) < INT32 else None
    return _aliases(sql, tenant, name).get(which or "latest")


def _aliases(sql: Connection, tenant: str, name: str) -> dict[str, int]:
    newest = sql.execute(
        select(func.max(artifact_versions.c.version)).where(
            artifact_versions.c.tenant == tenant, artifact_versions.c.name == name
        )
    ).scalar()
    row = sql.execute(
        select(artifact_aliases.c.aliases).where(artifact_aliases.c.tenant == tenant, artifact_aliases.c.name == name)
    ).one_or_none()
    latest = {"latest": newest} if newest is not None else {}
    return latest | (row.aliases if row else {})


def _version(sql: Connection, tenant: str, name: str, version: int) -> ArtifactVersionState | None:
    state = sql.execute(
        select(artifact_versions.c.state).where(
            artifact_versions.c.tenant == tenant,
            artifact_versions.c.name == name,
            artifact_versions.c.version == version,
        )
    ).scalar_one_or_none()
    return ArtifactVersionState.model_validate(state) if state is not None else None


def _states(found: Page[Row[Any]]) -> Page[ArtifactVersionState]:
    return Page([ArtifactVersionState.model_validate(row.state) for row in found.items], found.has_more)
