"""Objects as files in a local folder: the embedded system's store, shared by all processes of the machine."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shared.store.disk import CHUNK_BYTES, NO_ROOM, fresh_file, make_folder, meaning, part_of, pour, sync_folder
from shared.store.keys import check_key, check_prefix
from shared.store.port import InvalidKey, ObjectInfo, ObjectNotFound, OnBytes, StoreError, StoreUnavailable

TEMPORARY = ".tmp"
STALE_S = 24 * 3600


class LocalStore:
    """An object is a file under `root`. It is written aside, synced and renamed: whole or not there, power cuts too.

    A file is never changed in place, so copies are hard links.
    """

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.realpath(root))
        self._swept = False

    def put_bytes(self, key: str, data: bytes) -> None:
        with self.writer(key) as file:
            file.write(data)

    def put_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        with path.open("rb") as source, self.writer(key) as file:
            pour(source, file, on_bytes)

    @contextmanager
    def writer(self, key: str) -> Iterator[BinaryIO]:
        target = self._path(key)
        self._sweep()
        with fresh_file(self._root / TEMPORARY) as (file, temporary):
            try:
                yield file
            except OSError as error:  # the block's own errors stay what they are
                raise (meaning(error, f"object {key!r}") if error.errno in NO_ROOM else error) from error
            with self._explained(key):
                file.flush()
                os.fsync(file.fileno())
                self._move(temporary, target)

    def get_bytes(self, key: str) -> bytes:
        with self._open(key) as file, self._explained(key):
            return file.read()

    def get_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        with self._open(key) as source, self._explained(key):
            now = os.fstat(source.fileno())
            with part_of(path, f"{self._path(key)} {now.st_ino} {now.st_mtime_ns} {now.st_size}") as part:
                source.seek(part.seek(0, os.SEEK_END))
                if on_bytes and source.tell():
                    on_bytes(source.tell())
                pour(source, part, on_bytes)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        file = self._open(key)
        file.seek(offset)
        return self._chunks(key, file, length)

    def stat(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        return ObjectInfo(key, path.stat().st_size) if path.is_file() else None

    def copy(self, source: str, target: str) -> None:
        origin, goal = self._path(source), self._path(target)
        if not origin.is_file():
            raise ObjectNotFound(f"there is no object {source!r}")
        with self._explained(target), fresh_file(self._root / TEMPORARY) as (_, temporary):
            temporary.unlink()
            try:
                os.link(origin, temporary)
            except OSError:  # no more links to that file, or a file system without them
                shutil.copyfile(origin, temporary)
                with temporary.open("rb") as copied:
                    os.fsync(copied.fileno())
            self._move(temporary, goal)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = self._path(check_prefix(prefix)[:-1]) if prefix else self._root
        return self._walk(folder, prefix)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._explained(key):
            try:
                path.unlink(missing_ok=True)
            except (IsADirectoryError, NotADirectoryError):
                return
            for folder in path.parents:
                if folder == self._root or not _removed(folder):
                    break

    def link(self, key: str, disposition: str) -> str | None:
        return None

    def prepare(self) -> Sequence[str]:
        return []

    def ping(self) -> None:
        try:
            make_folder(self._root)
            with fresh_file(self._root / TEMPORARY):
                pass
        except OSError as error:
            raise StoreUnavailable(f"the object store's folder {self._root} cannot be written: {error}") from error

    def _path(self, key: str) -> Path:
        """Where the object lies. Raises InvalidKey when a link on the way would lead out of the root."""
        if check_key(key).split("/")[0] == TEMPORARY:
            raise InvalidKey(f"{key!r} cannot name an object: {TEMPORARY!r} is kept for files in the making")
        path = self._root / key
        if os.path.realpath(path) != str(path):
            raise InvalidKey(f"{key!r} cannot name an object: there is a symbolic link on its way")
        return path

    def _open(self, key: str) -> BinaryIO:
        with self._explained(key):
            try:
                return self._path(key).open("rb")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise ObjectNotFound(f"there is no object {key!r}") from error

    def _chunks(self, key: str, file: BinaryIO, length: int | None) -> Iterator[bytes]:
        with file, self._explained(key):
            left = length
            while left is None or left > 0:
                chunk = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
                if not chunk:
                    return
                left = None if left is None else left - len(chunk)
                yield chunk

    def _move(self, temporary: Path, target: Path) -> None:
        while True:
            try:
                make_folder(target.parent)
                temporary.replace(target)  # does nothing where both are the same file already
                break
            except FileNotFoundError:
                if not temporary.exists():
                    raise
                continue  # a delete took the empty folder away in between
        sync_folder(target.parent)

    def _walk(self, folder: Path, prefix: str) -> Iterator[ObjectInfo]:
        """In the order of the keys, as S3 lists."""
        try:
            with os.scandir(folder) as entries:
                found = sorted((entry.name + ("/" if _is_folder(entry) else ""), entry) for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return
        for name, entry in found:
            if name.endswith("/") and (prefix or name != f"{TEMPORARY}/"):
                yield from self._walk(folder / entry.name, prefix + name)
            elif entry.is_file(follow_symlinks=False):
                try:
                    yield ObjectInfo(prefix + name, entry.stat(follow_symlinks=False).st_size)
                except FileNotFoundError:
                    continue

    def _sweep(self) -> None:
        """Once, delete what killed writers left behind."""
        if self._swept:
            return
        self._swept = True
        for leftover in (self._root / TEMPORARY).glob("*"):
            try:
                if time.time() - leftover.stat().st_mtime > STALE_S:
                    leftover.unlink()
            except FileNotFoundError:
                continue

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            raise meaning(error, f"object {key!r}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
