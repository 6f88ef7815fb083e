"""A folder on its way into the registry: its files under `files/`, then the manifest that makes them count."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shared.contracts.artifacts import Manifest, ManifestFile
from shared.contracts.message import first_line
from shared.store.keys import check_key
from shared.store.port import CorruptArtifact, InvalidKey, ObjectStore, OnBytes

MANIFEST = "manifest.json"
SHA256 = re.compile(r"[0-9a-f]{64}")


def staged_manifest_key(prefix: str) -> str:
    return f"{prefix}/{MANIFEST}"


def staged_file_key(prefix: str, path: str) -> str:
    return f"{prefix}/files/{path}"


def stage_folder(
    store: ObjectStore,
    prefix: str,
    folder: Path,
    metadata: dict[str, Any],
    on_bytes: OnBytes | None = None,
    staged: dict[str, ManifestFile] | None = None,
) -> Manifest:
    """Upload every file of `folder`, then the manifest. Doing it again replaces all of it, but for what is in `staged`:
    there the files are noted that are up, for who tries again with the same folder.

    Raises StoreError; InvalidKey for a symbolic link or a name that cannot be a key.
    """
    staged = {} if staged is None else staged
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing:
        files = [_stage_file(store, prefix, folder, path, hashing, on_bytes, staged) for path in _files(folder)]
    manifest = Manifest(files=files, metadata=metadata)
    store.put_bytes(staged_manifest_key(prefix), manifest.model_dump_json().encode())
    return manifest


def read_manifest(store: ObjectStore, key: str) -> Manifest:
    """The manifest at `key`. Raises ObjectNotFound, and CorruptArtifact when it is no sound manifest."""
    return parse_manifest(store.get_bytes(key), key)


def parse_manifest(data: bytes, where: str) -> Manifest:
    """A manifest whose paths, sizes and hashes can be trusted to be well-formed. Raises CorruptArtifact."""
    try:
        manifest = Manifest.model_validate_json(data)
        seen: set[str] = set()
        for file in manifest.files:
            check_key(file.path)
            if file.path in seen:
                raise ValueError(f"{file.path!r} is listed twice")
            if file.size_bytes < 0 or not SHA256.fullmatch(file.sha256):
                raise ValueError(f"the size or the sha256 of {file.path!r} is none")
            seen.add(file.path)
    except (ValueError, InvalidKey) as error:
        raise CorruptArtifact(f"the manifest {where!r} is broken: {first_line(error)}") from error
    return manifest


def sha256_of(path: Path) -> str:
    """Lower-case hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stage_file(
    store: ObjectStore,
    prefix: str,
    folder: Path,
    path: Path,
    hashing: ThreadPoolExecutor,
    on_bytes: OnBytes | None,
    staged: dict[str, ManifestFile],
) -> ManifestFile:
    relative = path.relative_to(folder).as_posix()
    size_bytes = path.stat().st_size
    if relative in staged:
        if on_bytes:
            on_bytes(size_bytes)
        return staged[relative]
    digest = hashing.submit(sha256_of, path)  # beside the upload; the registry checks one against the other
    store.put_file(staged_file_key(prefix, relative), path, on_bytes)
    staged[relative] = ManifestFile(path=relative, size_bytes=size_bytes, sha256=digest.result())
    return staged[relative]


def _files(folder: Path) -> Iterator[Path]:
    """Every file under `folder`, sorted."""
    if not folder.is_dir():
        raise InvalidKey(f"{folder} is no folder")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise InvalidKey(f"{name!r} is a symbolic link: put the file itself in its place")
        if path.is_file():
            check_key(name)
            yield path
        elif not path.is_dir():
            raise InvalidKey(f"{name!r} is neither a file nor a folder")
