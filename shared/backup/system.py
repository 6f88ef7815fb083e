"""What a backup is made of, and where it is restored to: the databases of three services, and the object store."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DBAPIError

from shared.backup.errors import Away, Occupied, Unusable
from shared.backup.rows import REVISIONS
from shared.contracts.artifacts import ArtifactVersionState
from shared.db import AWAY, open_database, why
from shared.db.postgres import refusal
from shared.settings import Settings, SettingsError
from shared.store import connect
from shared.store.port import ObjectStore

SERVICES = ("scheduler", "gateway", "registry")
"""In the order of their dumps. What one refers to is in those that come later: the artifact of a job that has
succeeded, the version that a submission names. What an earlier one does not know yet, a later one sends again after a
restore."""


@dataclass
class Restored:
    """What the services tell each other while they are restored, in the order of `SERVICES` but the gateway last."""

    taken_at: float
    """Seconds since the epoch."""
    handled: set[str] = field(default_factory=set)
    """Ids of the commands that scheduler and registry have handled, or have written down to be handled."""
    jobs: set[str] = field(default_factory=set)
    """Ids of the jobs that the scheduler knows."""
    unfinished: set[str] = field(default_factory=set)
    """Those of them that have not ended."""


SETTLING_ORDER = ("scheduler", "registry", "gateway")


class Knowledge(Protocol):
    """The module `services.<name>.backup`: what only the service knows about its own tables."""

    def settle(self, sql: Connection, restored: Restored) -> None:
        """After its rows were loaded, in the same transaction: make them fit a new, empty bus."""


class KnowsArtifacts(Knowledge, Protocol):
    """The registry's."""

    def artifacts(self, sql: Connection) -> Iterable[ArtifactVersionState]:
        """Every version that is there."""


def knowledge_of(service: str) -> Knowledge:
    return cast(Knowledge, importlib.import_module(f"services.{service}.backup"))


def registrys_knowledge() -> KnowsArtifacts:
    return cast(KnowsArtifacts, importlib.import_module("services.registry.backup"))


@dataclass(frozen=True)
class System:
    """A whole system's data."""

    engines: dict[str, Engine]
    store: ObjectStore

    def close(self) -> None:
        for engine in self.engines.values():
            engine.dispose()

    @contextmanager
    def snapshot(self, service: str) -> Iterator[Connection]:
        """A connection that sees one state of the database throughout, and keeps nobody waiting. Raises Away."""
        engine = self.engines[service]
        with explained(engine, service):
            if engine.dialect.name == "postgresql":
                with engine.connect().execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                ) as sql:
                    sql.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))  # the place may be slow
                    yield sql
            else:
                with engine.connect().execution_options(readonly=True) as sql:
                    yield sql

    @contextmanager
    def writing(self, service: str) -> Iterator[Connection]:
        """One transaction. Raises Away, and Occupied where somebody else holds a table."""
        with explained(self.engines[service], service), self.engines[service].begin() as sql:
            if sql.dialect.name == "postgresql":
                sql.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                sql.execute(text("SET LOCAL lock_timeout = '10s'"))
            yield sql

    def others(self, service: str) -> int:
        """How many sessions of others the database's server counts; SQLite does not know."""
        if self.engines[service].dialect.name != "postgresql":
            return 0
        with self.snapshot(service) as sql:
            return int(sql.execute(_OTHERS).scalar_one())


_OTHERS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND backend_type = 'client backend'"
)


def system_of(settings: Settings, *, must_exist: bool) -> System:
    """What the settings name. Opens nothing yet. Raises SettingsError, and Unusable where there is no such system."""
    urls = {service: settings.effective_db_url(service) for service in SERVICES}
    if len(set(urls.values())) < len(urls):
        raise SettingsError(
            "LLMOS_DB_URL is one database, and there are three: set LLMOS_GATEWAY_DB_URL, LLMOS_SCHEDULER_DB_URL and "
            "LLMOS_REGISTRY_DB_URL"
        )
    engines: dict[str, Engine] = {}
    for service, url in urls.items():
        if must_exist and url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
            raise Unusable(
                f"there is no system: the {service}'s database {url.removeprefix('sqlite:///')} is not there"
            )
        engines[service] = open_database(url)
    return System(engines, connect(settings))


def revision_of(sql: Connection, service: str) -> str:
    """That of the schema. Raises Unusable where there is none."""
    if not inspect(sql).has_table(REVISIONS):
        raise Unusable(f"there is no system: the {service}'s database has no tables")
    return str(sql.execute(text(f"SELECT version_num FROM {REVISIONS}")).scalar_one())


@contextmanager
def explained(engine: Engine, service: str) -> Iterator[None]:
    """The database's errors as sentences. Raises SettingsError where it refuses us for good."""
    try:
        yield
    except DBAPIError as error:
        if refused := refusal(error, engine.url):
            name = f"LLMOS_{service.upper()}_DB_URL"
            raise SettingsError(str(refused).replace("LLMOS_DB_URL", name)) from error
        if "lock timeout" in str(error.orig) or "database is locked" in str(error.orig):
            raise Occupied(f"somebody works on the {service}'s database: stop the services first") from error
        if isinstance(error, AWAY):
            raise Away(f"the {service}'s database does not work: {why(error)}") from error
        raise
