"""The registry's SQL tables and queries. Times in columns are seconds since the epoch."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from services.registry.domain import Artifact, Refused
from shared.contracts.artifacts import (
    ArtifactAliasesState,
    ArtifactKind,
    ArtifactVersionState,
    PublishArtifact,
    artifact_key,
    version_key,
)
from shared.contracts.message import Message

metadata = MetaData()

Number = BigInteger().with_variant(Integer, "sqlite")
"""64 bits: SQLite's own numbers have them under another name."""

artifacts = Table(
    "artifacts",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("last_version", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
)
"""A row stays when all its versions are deleted: numbers are never given twice, and revisions only grow."""

reservations = Table(
    "reservations",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("publication_id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("tenant", "name", "version"),
)
"""The version number of every publication, written down before anything is written under that number."""

versions = Table(
    "versions",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("publication_id", String, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("document", Text, nullable=False),
    UniqueConstraint("tenant", "publication_id"),
    ForeignKeyConstraint(["tenant", "name"], ["artifacts.tenant", "artifacts.name"]),
)
"""`document` is the ArtifactVersionState as it goes onto the bus, the same bytes every time."""

aliases = Table(
    "aliases",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("alias", String, primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(["tenant", "name", "version"], ["versions.tenant", "versions.name", "versions.version"]),
)

blob_references = Table(
    "blob_references",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("sha256", String(64), primary_key=True),
    Index("blob_references_by_blob", "sha256"),
)
"""Which blobs a version that is not deleted needs."""

inbox = Table(
    "inbox",
    metadata,
    Column("seq", Number, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("key", String, nullable=False),
    Column("publishes", Boolean, nullable=False),
    Column("command", LargeBinary, nullable=False),
    Index("inbox_by_key", "key", "seq"),
    sqlite_autoincrement=True,
)
"""Commands that are not answered yet."""

answers = Table(
    "handled_commands",
    metadata,
    Column("id", String, primary_key=True),
    Column("at", Float, nullable=False, index=True),
    Column("key", String, nullable=False),
    Column("answer", LargeBinary, nullable=False),
)

outbox_states = Table(
    "outbox_states",
    metadata,
    Column("key", String, primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("since", Float, nullable=False),
)
"""Keys of `registry.state` whose current state is to be published. `revision` grows when one changes once more."""

outbox_answers = Table(
    "outbox_answers",
    metadata,
    Column("seq", Number, primary_key=True, autoincrement=True),
    Column("key", String, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    Column("since", Float, nullable=False),
    sqlite_autoincrement=True,
)


def _of(table: Table, tenant: str, name: str) -> ColumnElement[bool]:
    return (table.c.tenant == tenant) & (table.c.name == name)


def load_artifact(connection: Connection, tenant: str, name: str, *, lock: bool = False) -> Artifact | None:
    """`lock`: nobody else changes it until this transaction ends."""
    query = select(artifacts).where(_of(artifacts, tenant, name))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        return None
    alive = select(versions.c.version).where(_of(versions, tenant, name), ~versions.c.deleted)
    pointing = select(aliases.c.alias, aliases.c.version).where(_of(aliases, tenant, name))
    return Artifact(
        tenant=tenant,
        name=name,
        kind=ArtifactKind(row.kind),
        last_version=row.last_version,
        revision=row.revision,
        versions=frozenset(connection.scalars(alive)),
        aliases={each.alias: each.version for each in connection.execute(pointing)},
    )


def save_artifact(connection: Connection, artifact: Artifact) -> None:
    """The name's own row and its aliases. The versions are rows of their own."""
    where = {"tenant": artifact.tenant, "name": artifact.name}
    values = {"kind": artifact.kind.value, "last_version": artifact.last_version, "revision": artifact.revision}
    if not connection.execute(update(artifacts).where(_of(artifacts, **where)).values(values)).rowcount:
        connection.execute(insert(artifacts).values(where | values))
    connection.execute(delete(aliases).where(_of(aliases, **where)))
    for alias, version in (artifact.aliases or {}).items():
        connection.execute(insert(aliases).values(where | {"alias": alias, "version": version}))


def reserve(connection: Connection, command: PublishArtifact, now: float) -> tuple[int, float]:
    """The version number of this publication and when it got it; the same at every call. Raises Refused where it is
    another name's: that number says nothing here."""
    where = {"tenant": command.tenant, "publication_id": command.publication_id}
    query = select(reservations).where(
        reservations.c.tenant == command.tenant, reservations.c.publication_id == command.publication_id
    )
    known = connection.execute(query).one_or_none()
    if known:
        if known.name != command.name:
            raise Refused(f"publication {command.publication_id!r} is one of {known.name!r}, not of {command.name!r}")
        return known.version, known.created_at
    artifact = load_artifact(connection, command.tenant, command.name, lock=True)
    artifact = artifact or Artifact(command.tenant, command.name, command.kind)
    artifact = replace(artifact, last_version=artifact.last_version + 1)
    save_artifact(connection, artifact)
    values = {"name": command.name, "version": artifact.last_version, "created_at": now}
    connection.execute(insert(reservations).values(where | values))
    return artifact.last_version, now


def find_publication(connection: Connection, tenant: str, publication_id: str) -> ArtifactVersionState | None:
    """The version of that publication, also when it was deleted since."""
    query = select(versions.c.document).where(versions.c.tenant == tenant, versions.c.publication_id == publication_id)
    document = connection.scalar(query)
    return ArtifactVersionState.model_validate_json(document) if document else None


def insert_version(connection: Connection, state: ArtifactVersionState) -> None:
    where = {"tenant": state.tenant, "name": state.name, "version": state.version}
    document = state.model_dump_json()
    connection.execute(
        insert(versions).values(
            where | {"publication_id": state.publication_id, "deleted": False, "document": document}
        )
    )
    for sha256 in {file.sha256 for file in state.manifest.files}:
        connection.execute(insert(blob_references).values(where | {"sha256": sha256}))


def delete_version(connection: Connection, tenant: str, name: str, version: int) -> None:
    at = _of(versions, tenant, name) & (versions.c.version == version)
    connection.execute(update(versions).where(at).values(deleted=True))
    references = _of(blob_references, tenant, name) & (blob_references.c.version == version)
    connection.execute(delete(blob_references).where(references))


def current_state(connection: Connection, key: str) -> Message | None:
    """What `registry.state` shall show for a key: a version, a name's aliases, or None for a tombstone."""
    tenant, _, rest = key.partition("/")
    name, at, version = rest.partition("@")
    if at:
        where = _of(versions, tenant, name) & (versions.c.version == int(version)) & ~versions.c.deleted
        document = connection.scalar(select(versions.c.document).where(where))
        return ArtifactVersionState.model_validate_json(document) if document else None
    artifact = load_artifact(connection, tenant, name)
    if artifact is None or not artifact.aliases:
        return None
    return ArtifactAliasesState(tenant=tenant, name=name, aliases=dict(artifact.aliases), revision=artifact.revision)


def truth(connection: Connection) -> dict[str, str | int]:
    """Every key that `registry.state` shall hold, with what tells its states apart."""
    alive = select(
        versions.c.tenant, versions.c.name, versions.c.version, versions.c.publication_id, artifacts.c.revision
    )
    same = (versions.c.tenant == artifacts.c.tenant) & (versions.c.name == artifacts.c.name)
    found: dict[str, str | int] = {}
    for row in connection.execute(alive.join_from(versions, artifacts, same).where(~versions.c.deleted)):
        found[version_key(row.tenant, row.name, row.version)] = row.publication_id
        found[artifact_key(row.tenant, row.name)] = row.revision
    return found
