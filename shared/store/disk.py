"""Files that are whole or not there, and what the disk's errors mean."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from shared.store.port import InvalidKey, OnBytes, StoreError, StoreFull, StoreUnavailable

CHUNK_BYTES = 2**20
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def meaning(error: OSError, what: str) -> StoreError:
    """The store's error for one of the disk."""
    if error.errno in NO_ROOM:
        return StoreFull(f"no room is left for {what}: {error.strerror}")
    if isinstance(error, (FileExistsError, IsADirectoryError, NotADirectoryError)):
        return InvalidKey(f"{what} is in the way of another: one's key goes on where the other's ends")
    return StoreUnavailable(f"{what}: {error.strerror or error}")


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents, durably."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


@contextmanager
def fresh_file(folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file of its own in `folder`, deleted at the end of the block unless it was moved away."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=folder)
    path = Path(name)
    file = os.fdopen(descriptor, "wb")
    try:
        yield file, path
        file.close()
    finally:
        with suppress(OSError):  # the disk is full: the block's own error says so
            file.close()
        path.unlink(missing_ok=True)


@contextmanager
def part_of(path: Path, tag: str) -> Iterator[BinaryIO]:
    """What is there of `path` so far, open at its end and locked against others; it becomes `path` when the block ends.

    `tag` tells one content from another: a part of something else is not gone on with. A block that raises leaves the
    part for the next try.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = "." + hashlib.sha256(path.name.encode()).hexdigest()[:16]
    part = path.with_name(f"{stem}.{hashlib.sha256(tag.encode()).hexdigest()[:16]}.part")
    with locked(part) as file:
        yield file
        file.flush()
        part.replace(path)
    for stale in path.parent.glob(f"{stem}.*.part"):
        stale.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, wait: bool = True, shared: bool = False) -> Iterator[BinaryIO]:
    """`path` open for reading and appending, locked for this block. Raises BlockingIOError when not to wait.

    The lock ends with the process, however it ends.
    """
    file = lock(path, wait=wait, shared=shared)
    try:
        yield file
    finally:
        file.close()


def lock(path: Path, *, wait: bool = True, shared: bool = False) -> BinaryIO:
    """As `locked`; the caller closes the file to let go."""
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, how)
            if _is_still(path, file):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # it was moved or deleted while we waited: what has the name now counts


def _is_still(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def pour(source: BinaryIO, target: BinaryIO, on_bytes: OnBytes | None) -> None:
    """Copy the rest of `source` to `target`."""
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)
        if on_bytes:
            on_bytes(len(chunk))
