"""Which objects a store has and what they hold: read before a backup copies them, and written into it."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from shared.backup.errors import Damaged
from shared.backup.place import hash_of
from shared.contracts.artifacts import blob_key
from shared.store.port import CorruptArtifact, ObjectInfo, ObjectNotFound, ObjectStore
from shared.store.staging import MANIFEST, SHA256, parse_manifest, staged_file_key

BLOBS, MANIFESTS, STAGING = "blobs/", "manifests/", "staging/"


@dataclass(frozen=True)
class Entry:
    """An object of the store and its content."""

    key: str
    size_bytes: int
    sha256: str


def read_store(store: ObjectStore) -> Iterator[Entry]:
    """Every object that belongs to the system. What vanishes meanwhile was of no use any more, and is left out.

    Blobs have their hash for a name, and a staged manifest says those of its files: only what is left is read.
    """
    for blob in store.list(BLOBS):
        sha256 = blob.key.rpartition("/")[2]
        if SHA256.fullmatch(sha256) and blob.key == blob_key(sha256):
            yield Entry(blob.key, blob.size_bytes, sha256)
    yield from _hashed(store, store.list(MANIFESTS), {})
    staged = list(store.list(STAGING))
    yield from _hashed(store, staged, _declared(store, staged))


def _hashed(store: ObjectStore, found: Iterable[ObjectInfo], declared: dict[str, tuple[int, str]]) -> Iterator[Entry]:
    for info in found:
        size_bytes, sha256 = declared.get(info.key, (-1, ""))
        if size_bytes == info.size_bytes:
            yield Entry(info.key, size_bytes, sha256)
            continue
        try:
            yield Entry(info.key, info.size_bytes, hash_of(store, info.key, lambda _: None))
        except ObjectNotFound:
            continue


def _declared(store: ObjectStore, staged: Iterable[ObjectInfo]) -> dict[str, tuple[int, str]]:
    """Size and hash of staged files by key, as their manifests have it."""
    declared: dict[str, tuple[int, str]] = {}
    for info in staged:
        prefix, _, name = info.key.rpartition("/")
        if name != MANIFEST:
            continue
        try:
            manifest = parse_manifest(store.get_bytes(info.key), info.key)
        except (ObjectNotFound, CorruptArtifact):  # gone meanwhile, or a file of somebody's that is only called so
            continue
        for file in manifest.files:
            declared[staged_file_key(prefix, file.path)] = (file.size_bytes, file.sha256)
    return declared


def write_index(entries: Iterable[Entry], to: io.RawIOBase) -> None:
    with gzip.GzipFile(fileobj=to, mode="wb", compresslevel=3, mtime=0) as out:
        for entry in entries:
            out.write(orjson.dumps([entry.key, entry.size_bytes, entry.sha256]) + b"\n")


def read_index(path: Path) -> list[Entry]:
    """Raises Damaged."""
    try:
        with gzip.open(path, "rb") as file:
            return [Entry(*orjson.loads(line)) for line in file]
    except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
        raise Damaged(f"{path.name} of the backup cannot be read: {error}") from error
