"""One function a command. Each may be killed between any two steps and come again: the outcome is the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from sqlalchemy import Connection, Engine

from services.registry import metrics
from services.registry.answers import answer_again, mark_states, write_answer
from services.registry.domain import (
    Artifact,
    Refused,
    check_kind,
    check_manifest_size,
    check_staged_prefix,
    enriched,
)
from services.registry.inbox import Command
from services.registry.staged import keep_blobs, verified_manifest
from services.registry.tables import (
    delete_version,
    find_publication,
    insert_version,
    load_artifact,
    reserve,
    save_artifact,
)
from shared.bus.port import BrokenRecord
from shared.contracts.artifacts import (
    ArtifactPin,
    ArtifactVersionState,
    CommandDone,
    CommandRejected,
    DeleteArtifact,
    Manifest,
    PublishArtifact,
    SetAlias,
    artifact_key,
    manifest_key,
    version_key,
)
from shared.store.port import ObjectStore
from shared.tracing import span

log = structlog.get_logger("registry")


class Handlers:
    """Of several artifacts at once, of one artifact one after the other."""

    def __init__(self, engine: Engine, store: ObjectStore, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._store = store
        self._wake = wake

    def broken(self, record: BrokenRecord) -> None:
        """Whoever waits for an answer gets one, though the command could not be read."""
        envelope = record.envelope
        if envelope is None:
            return
        named = {name: envelope.body.get(name) for name in ("publication_id", "job_id")}
        known = {name: value for name, value in named.items() if isinstance(value, str)}
        answer = CommandRejected(tenant=envelope.tenant, command_id=envelope.id, reason=record.reason, **known)
        with self._engine.begin() as connection:
            if not answer_again(connection, envelope.id):
                write_answer(connection, known.get("job_id", record.key), answer)
        self._wake()

    def handle(self, command: Command) -> None:
        """Do it and answer it. Raises what the store and the database raise: then it is to come again."""
        with span(type(command).__name__, command.traceparent, kind="consumer", artifact=command.name) as work:
            work.set(command_id=command.id, job_id=command.job_id if isinstance(command, PublishArtifact) else None)
            try:
                self._do(command.changed(traceparent=work.traceparent))
            except Refused as refusal:
                work.fail(str(refusal))
                self._reject(command, str(refusal))

    def _do(self, command: Command) -> None:
        match command:
            case PublishArtifact():
                self._publish(command)
            case SetAlias():
                self._set_alias(command)
            case DeleteArtifact():
                self._delete(command)

    def _publish(self, command: PublishArtifact) -> None:
        """Check what is staged, take a number, keep the blobs, then the manifest, and last make the version exist."""
        with self._engine.begin() as connection:
            if self._published_before(connection, command):
                return
            check_kind(load_artifact(connection, command.tenant, command.name), command.kind)
        check_staged_prefix(command.staged_prefix)
        staged = verified_manifest(self._store, command.kind, command.staged_prefix)
        check_manifest_size(len(enriched(staged, command, 0, command.at).model_dump_json()))
        with self._engine.begin() as connection:
            version, created = reserve(connection, command, time.time())
        state = _version_state(command, version, datetime.fromtimestamp(created, UTC), staged)
        keep_blobs(self._store, command.staged_prefix, staged)
        self._store.put_bytes(state.manifest_key, state.manifest.model_dump_json().encode())
        with self._engine.begin() as connection:
            if not self._published_before(connection, command):
                self._add_version(connection, command, state)
        log.info("published", ref=state.pin.ref, tenant=command.tenant, job_id=command.job_id)
        metrics.PUBLISHED.labels(command.kind.value).inc()

    def _published_before(self, connection: Connection, command: PublishArtifact) -> bool:
        """Answer a publication that is there already with its version. Raises Refused when it has another name."""
        known = find_publication(connection, command.tenant, command.publication_id)
        if known is None:
            return False
        if known.name != command.name:
            raise Refused(f"publication {command.publication_id!r} already is {known.pin.ref}, not {command.name!r}")
        write_answer(connection, _answer_key(command), _done(command, known.pin))
        return True

    def _add_version(self, connection: Connection, command: PublishArtifact, state: ArtifactVersionState) -> None:
        artifact = _there(load_artifact(connection, command.tenant, command.name, lock=True), command.name)
        insert_version(connection, state)
        save_artifact(connection, artifact.with_version(state.version, command.kind, command.aliases))
        mark_states(connection, [version_key(command.tenant, state.name, state.version), _key(command)])
        write_answer(connection, _answer_key(command), _done(command, state.pin))

    def _set_alias(self, command: SetAlias) -> None:
        with self._engine.begin() as connection:
            artifact = _there(load_artifact(connection, command.tenant, command.name, lock=True), command.name)
            save_artifact(connection, artifact.with_alias(command.alias, command.version))
            mark_states(connection, [_key(command)])
            write_answer(connection, _answer_key(command), _done(command))

    def _delete(self, command: DeleteArtifact) -> None:
        """The versions are gone from the registry; their blobs stay until nothing needs them."""
        with self._engine.begin() as connection:
            artifact = _there(load_artifact(connection, command.tenant, command.name, lock=True), command.name)
            gone = artifact.resolve(command.version)
            save_artifact(connection, artifact.without(gone))
            for version in gone:
                delete_version(connection, command.tenant, command.name, version)
            keys = [version_key(command.tenant, command.name, version) for version in sorted(gone)]
            mark_states(connection, [*keys, _key(command)])
            write_answer(connection, _answer_key(command), _done(command))
        log.info("deleted", name=command.name, tenant=command.tenant, versions=sorted(gone))

    def _reject(self, command: Command, reason: str) -> None:
        with self._engine.begin() as connection:
            write_answer(connection, _answer_key(command), _rejected(command, reason))
        log.info("rejected", type=type(command).__name__, id=command.id, reason=reason)
        metrics.REJECTED.labels(type(command).__name__).inc()


def _version_state(
    command: PublishArtifact, version: int, created_at: datetime, staged: Manifest
) -> ArtifactVersionState:
    return ArtifactVersionState(
        tenant=command.tenant,
        traceparent=command.traceparent,
        name=command.name,
        version=version,
        kind=command.kind,
        manifest_key=manifest_key(command.tenant, command.name, version),
        manifest=enriched(staged, command, version, created_at),
        publication_id=command.publication_id,
        job_id=command.job_id,
        parents=command.parents,
        created_at=created_at,
    )


def _there(artifact: Artifact | None, name: str) -> Artifact:
    if artifact is None or not artifact.last_version:
        raise Refused(f"there is no artifact {name!r}")
    return artifact


def _key(command: Command) -> str:
    return artifact_key(command.tenant, command.name)


def _answer_key(command: Command) -> str:
    return (command.job_id if isinstance(command, PublishArtifact) else None) or _key(command)


def _done(command: Command, pin: ArtifactPin | None = None) -> CommandDone:
    return CommandDone(**_about(command), artifact=pin)


def _rejected(command: Command, reason: str) -> CommandRejected:
    return CommandRejected(**_about(command), reason=reason)


def _about(command: Command) -> dict[str, str | None]:
    about = {"tenant": command.tenant, "traceparent": command.traceparent, "command_id": command.id}
    if isinstance(command, PublishArtifact):
        about |= {"publication_id": command.publication_id, "job_id": command.job_id}
    return about
