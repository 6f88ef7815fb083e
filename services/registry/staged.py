"""From staging to blobs: what is staged is read and checked whole before a version of it exists."""

from __future__ import annotations

import hashlib

from services.registry.domain import HEAD_BYTES, Refused, check_content, check_files
from services.registry.safetensors import NotSafetensors, check_safetensors
from shared.contracts.artifacts import ArtifactKind, Manifest, ManifestFile, blob_key
from shared.store.port import CorruptArtifact, InvalidKey, ObjectNotFound, ObjectStore
from shared.store.staging import read_manifest, staged_file_key, staged_manifest_key


def verified_manifest(store: ObjectStore, kind: ArtifactKind, prefix: str) -> Manifest:
    """The staged manifest, every file of it read and found as it says. Raises Refused, StoreError."""
    try:
        manifest = read_manifest(store, staged_manifest_key(prefix))
        check_files(kind, manifest)
        for file in manifest.files:
            _verify(store, kind, staged_file_key(prefix, file.path), file)
    except ObjectNotFound as error:
        raise Refused(f"what was staged is not whole: {error}; stage it again") from error
    except (CorruptArtifact, InvalidKey) as error:
        raise Refused(f"{error}; stage it again") from error
    return manifest


def keep_blobs(store: ObjectStore, prefix: str, manifest: Manifest) -> None:
    """Copy inside the store what is not there yet. Raises Refused, StoreError."""
    for file in manifest.files:
        there = store.stat(blob_key(file.sha256))
        if there and there.size_bytes == file.size_bytes:
            continue
        try:
            store.copy(staged_file_key(prefix, file.path), blob_key(file.sha256))
        except ObjectNotFound as error:
            raise Refused(f"what was staged is gone: {error}; stage it again") from error


def _verify(store: ObjectStore, kind: ArtifactKind, key: str, file: ManifestFile) -> None:
    found = store.stat(key)
    if found is None:
        raise Refused(f"{file.path!r} is in the manifest but was not staged; stage it again")
    if found.size_bytes != file.size_bytes:
        raise Refused(f"{file.path!r} has {found.size_bytes} bytes, its manifest says {file.size_bytes}")
    digest, head = hashlib.sha256(), b""
    for chunk in store.read(key):
        digest.update(chunk)
        head += chunk[: HEAD_BYTES - len(head)]
    if digest.hexdigest() != file.sha256:
        raise Refused(f"{file.path!r} is not what its manifest says: its sha256 differs; stage it again")
    check_content(kind, file.path, head)
    if file.path.lower().endswith(".safetensors"):
        _check_tensors(store, key, file)


def _check_tensors(store: ObjectStore, key: str, file: ManifestFile) -> None:
    try:
        check_safetensors(file.size_bytes, lambda at, length: b"".join(store.read(key, at, length)))
    except NotSafetensors as error:
        raise Refused(f"{file.path!r} is no sound safetensors file: {error}") from error
