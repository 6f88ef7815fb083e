"""Where backups lie: a folder or a bucket. Objects are kept by hash, once for all backups in it.

blobs/<aa>/<sha256>            every object of every backup
backups/<id>/<service>.rows    a database
backups/<id>/objects.index     which key of the store is which blob
backups/<id>/backup.json       written last: a folder without it is no backup
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from shared.backup.errors import Damaged, NoSuchBackup, Unusable
from shared.settings import Settings, SettingsError
from shared.store.local import LocalStore
from shared.store.port import ObjectNotFound, ObjectStore, OnBytes, StoreUninitialized
from shared.store.staging import sha256_of

BACKUPS = "backups"
HEAD = "backup.json"
INDEX = "objects.index"
FORMAT = 1
ID = re.compile(r"\d{8}T\d{6}Z(-\d+)?")


class Part(BaseModel):
    """A file of a backup."""

    size_bytes: int
    sha256: str


class Backup(BaseModel):
    """What `backup.json` says. `broken`: artifacts that were not whole in the system when it was saved."""

    format: int = FORMAT
    id: str
    taken_at: datetime
    version: str
    databases: dict[str, Part]
    rows: dict[str, int]
    index: Part
    objects: int
    size_bytes: int
    broken: list[str] = []


class Place:
    """Backups in one folder or bucket."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self.store = store
        self.name = name

    def backups(self) -> list[str]:
        """Ids of those that are whole, oldest first."""
        heads = (found.key.split("/") for found in self.store.list(f"{BACKUPS}/"))
        return sorted(parts[1] for parts in heads if len(parts) == 3 and parts[2] == HEAD)

    def new_id(self, now: datetime) -> str:
        """One that sorts behind all others."""
        taken = {found.key.split("/")[1] for found in self.store.list(f"{BACKUPS}/")}
        name = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        ids = (name, *(f"{name}-{number}" for number in range(2, 1000)))
        return next(each for each in ids if each not in taken)

    def backup(self, wanted: str | None) -> Backup:
        """That one, or the newest. Raises NoSuchBackup, Damaged."""
        there = self.backups()
        if not there:
            raise NoSuchBackup(f"{self.name} holds no backup")
        if wanted and wanted not in there:
            raise NoSuchBackup(f"{self.name} holds no backup {wanted!r}; there are {', '.join(there)}")
        return self._head(wanted or there[-1])

    def blobs(self) -> dict[str, int]:
        """Size by hash of what is kept."""
        return {found.key.rpartition("/")[2]: found.size_bytes for found in self.store.list("blobs/")}

    @contextmanager
    def writer(self, backup_id: str, name: str) -> Iterator[Counting]:
        """A file of a backup, which appears when the block ends well."""
        with self.store.writer(f"{BACKUPS}/{backup_id}/{name}") as file:
            counting = Counting(file)
            yield counting
            counting.flush()

    def seal(self, backup: Backup) -> None:
        """From now on it counts."""
        raw = backup.model_dump_json(indent=1).encode()
        seal = hashlib.sha256(raw).hexdigest().encode()
        self.store.put_bytes(f"{BACKUPS}/{backup.id}/{HEAD}", raw + b"\n" + seal + b"\n")

    @contextmanager
    def local(self, backup: Backup) -> Iterator[Path]:
        """A folder with the databases and the index of a backup, found to be what was written. Raises Damaged."""
        with tempfile.TemporaryDirectory(prefix="llmos-restore-") as folder:
            for name, part in {
                **{f"{name}.rows": part for name, part in backup.databases.items()},
                INDEX: backup.index,
            }.items():
                path = Path(folder) / name
                try:
                    self.store.get_file(f"{BACKUPS}/{backup.id}/{name}", path)
                except ObjectNotFound:
                    raise Damaged(f"{name} of the backup {backup.id} is missing in {self.name}") from None
                if sha256_of(path) != part.sha256:
                    raise Damaged(
                        f"{name} of the backup {backup.id} in {self.name} is not what was written: its sha256 differs"
                    )
            yield Path(folder)

    def _head(self, backup_id: str) -> Backup:
        raw, _, seal = self.store.get_bytes(f"{BACKUPS}/{backup_id}/{HEAD}").rstrip(b"\n").rpartition(b"\n")
        problem = "its sha256 differs"
        if hashlib.sha256(raw).hexdigest().encode() == seal:
            try:
                backup = Backup.model_validate_json(raw)
                if backup.format == FORMAT:
                    return backup
                problem = f"its format is {backup.format}, and this version reads {FORMAT}"
            except ValidationError as error:
                problem = str(error.errors()[0]["msg"])
        raise Damaged(f"{HEAD} of the backup {backup_id} in {self.name} cannot be used: {problem}")


class Counting(io.RawIOBase):
    """Passes bytes on, and knows how many they were and their hash."""

    def __init__(self, to: BinaryIO) -> None:
        self._to = to
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._to.write(data)
        self._digest.update(data)
        size = memoryview(data).nbytes
        self._size_bytes += size
        return size

    @property
    def part(self) -> Part:
        return Part(size_bytes=self._size_bytes, sha256=self._digest.hexdigest())


def copy_verified(source: ObjectStore, key: str, target: ObjectStore, to: str, sha256: str, on_bytes: OnBytes) -> bool:
    """Copy an object from one store to another; False, and nothing is there, when it has not that hash.

    Raises StoreError; ObjectNotFound when it is not there.
    """
    digest = hashlib.sha256()
    chunks = source.read(key)
    try:
        with target.writer(to) as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
                on_bytes(len(chunk))
            if digest.hexdigest() != sha256:
                raise _Other
    except _Other:
        return False
    return True


class _Other(Exception):
    """It is another content; the writer must not let it appear."""


def hash_of(store: ObjectStore, key: str, on_bytes: OnBytes) -> str:
    """The sha256 of an object's bytes. Raises StoreError."""
    digest = hashlib.sha256()
    for chunk in store.read(key):
        digest.update(chunk)
        on_bytes(len(chunk))
    return digest.hexdigest()


def place_at(where: str, settings: Settings, *, must_exist: bool) -> Place:
    """The place at a folder or `s3://host:port/bucket`. Raises BackupError, StoreError."""
    live = urlsplit(settings.effective_store_url)
    if "://" not in where:
        folder = Path(where).expanduser().absolute()
        _check_folder(folder, must_exist)
        if live.scheme == "file" and _overlap(folder, Path(live.path)):
            raise Unusable(f"{folder} lies in the system's own object store, or that in it: give another folder")
        return Place(LocalStore(folder), str(folder))
    parts = urlsplit(where)
    if (parts.scheme, parts.netloc, parts.path) == (live.scheme, live.netloc, live.path):
        raise Unusable(f"{where} is the system's own object store: give another bucket")
    bucket = parts.path.strip("/")
    if parts.scheme != "s3" or not parts.netloc or not bucket or "/" in bucket:
        raise Unusable(f"{where!r} is neither a folder nor s3://host:port/bucket")
    return Place(_bucket(parts.netloc, bucket, settings, must_exist), where)


def _bucket(endpoint: str, bucket: str, settings: Settings, must_exist: bool) -> ObjectStore:
    from shared.store.s3 import S3Store

    try:
        store = S3Store(
            endpoint,
            bucket,
            settings.backup_s3_access_key or settings.s3_access_key,
            settings.backup_s3_secret_key or settings.s3_secret_key,
            settings.backup_s3_secure,
        )
    except SettingsError as error:
        raise Unusable(str(error).replace("LLMOS_STORE_URL: ", "")) from error
    if not must_exist:
        store.prepare()
        return store
    try:
        store.ping()
    except StoreUninitialized as error:
        raise NoSuchBackup(f"there is no bucket {bucket!r} at {endpoint}") from error
    return store


def _check_folder(folder: Path, must_exist: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise Unusable(f"{folder} is no folder")
    if must_exist and not folder.is_dir():
        raise NoSuchBackup(f"there is no folder {folder}")
    if not folder.parent.is_dir():  # a disk that is not mounted must not fill the one below
        raise Unusable(f"there is no folder {folder.parent}: make it, or mount what shall be there")


def _overlap(one: Path, other: Path) -> bool:
    one, other = one.resolve(), other.resolve()
    return one == other or one in other.parents or other in one.parents
