"""Deployments: what was asked for, and what the scheduler made of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, select, update

from services.gateway.errors import NotFound
from services.gateway.sql import reading, upsert
from services.gateway.tables import deployments
from services.gateway.view.paging import Page
from services.gateway.view.paging import page as page_of
from shared.contracts.deployments import DeploymentSpec, DesiredDeployment


@dataclass(frozen=True)
class Deployment:
    """`wanted` is there while the scheduler has not answered the last change yet."""

    tenant: str
    name: str
    created_at: datetime
    wanted: DeploymentSpec | None
    desired: DesiredDeployment | None
    deleting: bool

    @property
    def spec(self) -> DeploymentSpec:
        if self.wanted is not None:
            return self.wanted
        assert self.desired is not None
        return self.desired.spec


class Deployments:
    """Queries over the table `deployments`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def find(self, tenant: str, name: str) -> Deployment | None:
        query = select(deployments).where(deployments.c.tenant == tenant, deployments.c.name == name)
        with reading(self._engine) as sql:
            row = sql.execute(query).one_or_none()
        return _deployment(row) if row else None

    def get(self, tenant: str, name: str) -> Deployment:
        """Raises NotFound; one that is being deleted is still there."""
        found = self.find(tenant, name)
        if found is None:
            raise NotFound(f"There is no deployment {name!r}.", param="name", code="deployment_not_found")
        return found

    def page(self, tenant: str, *, after: str | None, limit: int) -> Page[Deployment]:
        query = select(deployments).where(deployments.c.tenant == tenant)
        column = deployments.c.name
        with reading(self._engine) as sql:
            found = page_of(sql, query, column, after=after, limit=limit, order="asc")
        return Page([_deployment(row) for row in found.items], found.has_more)

    def all(self, tenant: str) -> list[Deployment]:
        query = select(deployments).where(deployments.c.tenant == tenant).order_by(deployments.c.name)
        with reading(self._engine) as sql:
            return [_deployment(row) for row in sql.execute(query)]

    def want(self, sql: Connection, tenant: str, name: str, spec: DeploymentSpec) -> None:
        """Show what was asked for until the scheduler answers."""
        row = {"tenant": tenant, "name": name, "wanted": spec.model_dump(mode="json"), "deleting": False}
        new = {"version": 0, "created_at": datetime.now(UTC), "state": None}
        upsert(sql, deployments, row | new, keep=new)

    def mark_deleting(self, sql: Connection, tenant: str, name: str) -> None:
        known = deployments.c.tenant == tenant, deployments.c.name == name
        sql.execute(update(deployments).where(*known).values(deleting=True))


def _deployment(row: Row[Any]) -> Deployment:
    return Deployment(
        row.tenant,
        row.name,
        row.created_at,
        DeploymentSpec.model_validate(row.wanted) if row.wanted else None,
        DesiredDeployment.model_validate(row.state) if row.state else None,
        row.deleting,
    )
