"""A node's cache of artifacts: files by hash, and a folder of hard links for every version pulled.

    blobs/<sha256>         verified while they streamed in
    parts/<sha256>         on their way; a killed pull goes on from here
    versions/<id>/         a version's files, whole or not there
    versions/<id>.making   the same, while it is filled
    versions/<id>.use      held shared by every process that uses the version; nothing in use is evicted
    versions/<id>.build    held by the one process that fills the version
    manifests/<key's hash> so that what is here can be used while the store is away
    boot                   the machine's start that wrote all this

Every lock is a `flock`, so it ends with its process. What was written before a power cut may be torn: after a new start
of the machine the blobs count as parts again, and are hashed before they are served.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import structlog

from shared.contracts.artifacts import Manifest, ManifestFile, blob_key
from shared.store.disk import CHUNK_BYTES, fresh_file, lock, locked, meaning
from shared.store.eviction import evict
from shared.store.port import CorruptArtifact, ObjectStore, OnBytes, StoreFull, StoreUnavailable
from shared.store.staging import parse_manifest, read_manifest, staged_file_key, staged_manifest_key

log = structlog.get_logger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
VERIFIED_S = 946684800
"""A verified file's mtime (the year 2000): any write into it moves that, and it is fetched anew."""

HASH_BEHIND = 8
"""Chunks that wait to be hashed while the next ones are fetched and written."""

KeyOf = Callable[[ManifestFile], str]


class ArtifactCache:
    """One per process, any number of processes on the folder. Its methods may be called from any thread."""

    def __init__(self, store: ObjectStore, folder: Path, limit_bytes: int, max_age_s: float) -> None:
        self._store = store
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._max_age_s = max_age_s
        self._in_use: dict[Path, list[BinaryIO]] = {}
        self._guard = threading.Lock()
        self._opened = False

    def pull(self, manifest_key: str, on_bytes: OnBytes | None = None) -> Path:
        """The folder with a registered version's files, in use until `release` or the end of this cache object.

        Do not write into it. Raises ObjectNotFound, CorruptArtifact, StoreFull, StoreUnavailable.
        """
        return self._with_room(
            lambda: self._pulled(self._manifest(manifest_key), lambda file: blob_key(file.sha256), on_bytes)
        )

    def pull_staged(self, prefix: str, on_bytes: OnBytes | None = None) -> Path:
        """As `pull`, for a folder in staging such as a checkpoint."""
        return self._with_room(
            lambda: self._pulled(
                read_manifest(self._store, staged_manifest_key(prefix)),
                lambda file: staged_file_key(prefix, file.path),
                on_bytes,
            )
        )

    def release(self, folder: Path) -> None:
        """This process no longer uses `folder`: once for every pull of it. Then it may be evicted."""
        with self._guard:
            uses = self._in_use.get(folder)
            if uses:
                _touch(folder)
                uses.pop().close()

    def close(self) -> None:
        """Release everything."""
        for folder, uses in list(self._in_use.items()):
            while uses:
                self.release(folder)

    def _with_room(self, pull: Callable[[], Path]) -> Path:
        """What `pull` gives; where the disk is full, at whatever step, again with all that is not in use gone."""
        try:
            return self._told(pull)
        except StoreFull as error:
            log.warning("cache_full", folder=str(self._folder), reason=str(error))
            return self._told(pull, evicting=True)

    def _told(self, pull: Callable[[], Path], *, evicting: bool = False) -> Path:
        """`pull`, with the disk's errors told as the store's."""
        try:
            if evicting and (self._folder / "manifests").exists():
                evict(self._folder, 0, 0)
            self._open()
            return pull()
        except OSError as error:
            raise meaning(error, f"the cache folder {self._folder}") from error

    def _pulled(self, manifest: Manifest, key_of: KeyOf, on_bytes: OnBytes | None) -> Path:
        folder = self._folder / "versions" / _version_id(manifest)
        use = lock(Path(f"{folder}.use"), shared=True)
        try:
            with locked(Path(f"{folder}.build")):
                if not _is_whole(folder, manifest):
                    self._make(folder, manifest, key_of, on_bytes)
                elif on_bytes:
                    on_bytes(manifest.size_bytes)
            _touch(folder)
        except BaseException:
            use.close()
            raise
        with self._guard:
            self._in_use.setdefault(folder, []).append(use)
        return folder

    def _make(self, folder: Path, manifest: Manifest, key_of: KeyOf, on_bytes: OnBytes | None) -> None:
        """Make room and fill the version."""
        absent = {file.sha256: file.size_bytes for file in manifest.files if not _is_verified(self._blob(file), file)}
        evict(self._folder, self._limit_bytes - sum(absent.values()), self._max_age_s)
        making = Path(f"{folder}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        for file in manifest.files:
            target = making / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            self._place(file, key_of(file), target, on_bytes)
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)

    def _place(self, file: ManifestFile, key: str, target: Path, on_bytes: OnBytes | None) -> None:
        """Link the verified file to `target`; fetch it first where it is not here. One process fetches, others wait."""
        part = self._folder / "parts" / file.sha256
        if _linked(self._blob(file), file, target):
            if on_bytes:
                on_bytes(file.size_bytes)
            return
        with locked(part) as growing:
            if _linked(self._blob(file), file, target):  # by the process that we waited for
                part.unlink()
                return
            try:
                self._fetch(file, key, growing, on_bytes)
            except (CorruptArtifact, OSError):
                part.unlink()
                raise
            os.utime(part, (time.time(), VERIFIED_S))
            os.link(part, target)
            part.replace(self._blob(file))

    def _fetch(self, file: ManifestFile, key: str, part: BinaryIO, on_bytes: OnBytes | None) -> None:
        """Stream the rest of the object into `part`, hashing all of it. Raises CorruptArtifact."""
        resumed = _size(part)
        if not self._streamed(file, key, part, on_bytes):
            if resumed:  # what an earlier try left may be the broken one
                part.truncate(0)
                if self._streamed(file, key, part, on_bytes):
                    return
            raise CorruptArtifact(f"{file.path!r} ({key}) is not what its manifest says: its sha256 differs")

    def _streamed(self, file: ManifestFile, key: str, part: BinaryIO, on_bytes: OnBytes | None) -> bool:
        """Whether `part` is the file, after the rest of it was fetched. Hashing goes on beside writing."""
        digest, behind = hashlib.sha256(), deque[Future[None]]()
        with ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing:
            for chunk in self._chunks(file, key, part):
                behind.append(hashing.submit(digest.update, chunk))
                if len(behind) > HASH_BEHIND:
                    behind.popleft().result()
                if on_bytes:
                    on_bytes(len(chunk))
        part.flush()
        return _size(part) == file.size_bytes and digest.hexdigest() == file.sha256

    def _chunks(self, file: ManifestFile, key: str, part: BinaryIO) -> Iterator[bytes]:
        """What is in `part` already, then the rest from the store as it is written to `part`."""
        part.seek(0)
        while chunk := part.read(CHUNK_BYTES):
            yield chunk
        have = part.tell()
        for chunk in self._store.read(key, have, max(0, file.size_bytes - have)):
            part.write(chunk)
            yield chunk

    def _blob(self, file: ManifestFile) -> Path:
        return self._folder / "blobs" / file.sha256

    def _manifest(self, key: str) -> Manifest:
        """From the store; from the last pull while the store is away, since a version never changes."""
        kept = self._folder / "manifests" / hashlib.sha256(key.encode()).hexdigest()
        try:
            data = self._store.get_bytes(key)
        except StoreUnavailable:
            if not kept.exists():
                raise
            return parse_manifest(kept.read_bytes(), key)
        manifest = parse_manifest(data, key)
        try:
            with fresh_file(self._folder / "manifests") as (file, temporary):
                file.write(data)
                file.flush()
                temporary.replace(kept)
        except OSError as error:  # what is here whole needs no room to be served
            log.warning("manifest_not_kept", key=key, reason=str(error))
        return manifest

    def _open(self) -> None:
        with self._guard:
            if self._opened:
                return
            for name in ("blobs", "parts", "versions", "manifests"):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            with locked(self._folder / "boot") as file:
                now = BOOT_ID.read_bytes() if BOOT_ID.exists() else b"unknown"
                file.seek(0)
                if file.read() != now:
                    self._distrust()
                    file.truncate(0)
                    file.write(now)
            self._opened = True

    def _distrust(self) -> None:
        """Hash everything again before it is served."""
        for blob in (self._folder / "blobs").iterdir():
            blob.replace(self._folder / "parts" / blob.name)
        shutil.rmtree(self._folder / "versions")
        (self._folder / "versions").mkdir()


def _version_id(manifest: Manifest) -> str:
    """By content: versions with equal files share a folder."""
    files = "\n".join(f"{file.sha256} {file.path}" for file in sorted(manifest.files, key=lambda file: file.path))
    return hashlib.sha256(files.encode()).hexdigest()[:40]


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    return folder.is_dir() and all(_is_verified(folder / file.path, file) for file in manifest.files)


def _is_verified(path: Path, file: ManifestFile) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_size == file.size_bytes and found.st_mtime == VERIFIED_S


def _linked(blob: Path, file: ManifestFile, target: Path) -> bool:
    if not _is_verified(blob, file):
        blob.unlink(missing_ok=True)  # someone wrote into it
        return False
    try:
        os.link(blob, target)
    except FileNotFoundError:  # evicted in between
        return False
    return True


def _touch(folder: Path) -> None:
    """It was used now. The time is ours: the kernel's own is too coarse to order two uses."""
    now_ns = time.time_ns()
    os.utime(f"{folder}.use", ns=(now_ns, now_ns))


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
