"""Uploads as artifacts: staged by the gateway, published by the registry."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from anyio import to_thread
from fastapi import Request

from services.gateway.bodies import asked_with
from services.gateway.errors import Forbidden
from services.gateway.gateway import Gateway
from services.gateway.ids import new_id
from services.gateway.keys import Principal
from services.gateway.limits import announced_bytes
from services.gateway.submissions import Asked, Order
from services.gateway.uploads import Received, Sink, receive, too_large
from services.gateway.view.files import File
from services.gateway.waiting import shown
from shared.contracts.artifacts import (
    ArtifactKind,
    DeleteArtifact,
    Manifest,
    ManifestFile,
    PublishArtifact,
    artifact_key,
    upload_prefix,
    version_key,
)
from shared.contracts.topics import REGISTRY_COMMANDS
from shared.store.staging import staged_file_key, staged_manifest_key

REGISTRATION_S = 10.0
"""How long an upload waits for the registry before it answers `uploaded`."""
FORM_BYTES = 64 * 2**10
"""Room in a body for what is not the file: boundaries, headers, the purpose."""


async def upload(here: Gateway, caller: Principal, request: Request) -> File:
    """Stream into the store, commit the order to publish it, wait a little for the registry."""
    announced, limit = announced_bytes(request.headers.get("content-length")), here.settings.max_upload_bytes
    if announced > limit + FORM_BYTES:
        raise too_large(limit)
    room = await to_thread.run_sync(room_left, here, caller, announced)
    file_id = new_id("file")
    sink = Sink(here.store, upload_prefix(file_id), min(limit, room))
    received = await receive(request.stream(), request.headers.get("content-type"), sink)
    asked = asked_with(caller.tenant, request, _identity(received))
    file = await to_thread.run_sync(_register, here, asked, file_id, received)
    key = version_key(file.tenant, file.file_id, 1)
    return await shown(here, key, lambda: _settled(here, file), REGISTRATION_S) or file


def room_left(here: Gateway, caller: Principal, announced: int) -> int:
    """Bytes that the tenant may still store. Raises Forbidden when the request would not fit."""
    limit = caller.limits.get("max_storage_bytes", here.settings.max_storage_bytes)
    left = limit - here.view.artifacts.stored_bytes(caller.tenant) - here.view.files.unregistered_bytes(caller.tenant)
    if max(1, min(announced, here.settings.max_upload_bytes)) > left:
        raise Forbidden(
            f"This tenant may store {limit} bytes and has {max(left, 0)} left; delete what is not needed.",
            code="storage_limit",
        )
    return left


def delete_file(here: Gateway, asked: Asked, file: File) -> None:
    """Hide it at once, and have the registry delete it."""
    subject = artifact_key(file.tenant, file.file_id)
    command = DeleteArtifact(tenant=file.tenant, name=file.file_id)
    order = Order(REGISTRY_COMMANDS, subject, file.file_id, command, until="answered")
    here.submissions.accept(asked, order, lambda sql: here.view.files.mark_deleted(sql, file))


def _register(here: Gateway, asked: Asked, file_id: str, received: Received) -> File:
    """The manifest, then the submission. Where the same upload came before, ours leaves again."""
    prefix = upload_prefix(file_id)
    created_at = datetime.now(UTC)
    file = File(file_id, asked.tenant, received.filename, received.fields["purpose"], received.size_bytes, created_at)
    try:
        here.store.put_bytes(staged_manifest_key(prefix), _manifest(file, received).model_dump_json().encode())
        command = PublishArtifact(
            tenant=asked.tenant,
            publication_id=file_id,
            name=file_id,
            kind=ArtifactKind.file,
            staged_prefix=prefix,
        )
        order = Order(REGISTRY_COMMANDS, artifact_key(asked.tenant, file_id), file_id, command, until="answered")
        accepted = here.submissions.accept(asked, order, lambda sql: here.view.files.add(sql, file))
    except Exception:
        _unstage(here, prefix, received)
        raise
    if accepted.joined:
        _unstage(here, prefix, received)
        return here.view.files.get(asked.tenant, accepted.resource_id)
    return file


def _unstage(here: Gateway, prefix: str, received: Received) -> None:
    here.store.delete(staged_manifest_key(prefix))
    here.store.delete(staged_file_key(prefix, received.path))


def _manifest(file: File, received: Received) -> Manifest:
    return Manifest(
        files=[ManifestFile(path=received.path, size_bytes=received.size_bytes, sha256=received.sha256)],
        metadata={
            "filename": file.filename,
            "purpose": file.purpose,
            "bytes": file.bytes,
            "created_at": int(file.created_at.timestamp()),
        },
    )


def _identity(received: Received) -> str:
    """What makes two uploads the same: name, purpose and content."""
    words = "\0".join((received.filename, received.fields["purpose"], received.sha256))
    return hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()


def _settled(here: Gateway, file: File) -> File | None:
    """The file once the registry has answered, or once it is gone."""
    found = here.view.files.find(file.tenant, file.file_id)
    return file if found is None else found if found.status != "uploaded" else None
