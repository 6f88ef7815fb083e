"""The object store: flat keys with '/', whole objects. `tests/contract/test_store.py` holds every adapter to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from shared.starting import Uninitialized

OnBytes = Callable[[int], None]
"""Told how many more bytes were moved."""


class StoreError(Exception):
    """The store's errors.

    StoreError
    ├── ObjectNotFound    no object has that key
    ├── InvalidKey        the key is empty, absolute, climbs out or holds what no file system takes
    ├── CorruptArtifact   a file is not what its manifest says; it was deleted and is not served
    ├── StoreFull         no room is left
    └── StoreUnavailable  the server does not answer; try again
        ├── StoreUninitialized  it answers, and has no such bucket
        └── StoreRefuses        it answers, and does not take the credentials
    """


class ObjectNotFound(StoreError):
    """No object has that key."""


class InvalidKey(StoreError):
    """No object can have that key."""


class CorruptArtifact(StoreError):
    """The bytes of a file are not those that its manifest names."""


class StoreFull(StoreError):
    """The disk or the bucket's quota has no room for it."""


class StoreUnavailable(StoreError):
    """The store cannot be reached now."""


class StoreUninitialized(StoreUnavailable, Uninitialized):
    """The bucket is missing that `llmos admin init` makes."""


class StoreRefuses(StoreUnavailable):
    """The credentials are wrong, or may not do what is needed: trying again does not help."""


@dataclass(frozen=True)
class ObjectInfo:
    key: str
    size_bytes: int


class ObjectStore(Protocol):
    def put_bytes(self, key: str, data: bytes) -> None:
        """Whole or not at all; replaces what was there."""

    def put_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Whole or not at all; multipart and parallel where the store can. Goes on where an earlier try to the same key
        was cut off, if it was by the store."""

    def writer(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Write a stream of unknown length; the object appears when the block ends, never when it raises."""

    def get_bytes(self, key: str) -> bytes: ...

    def get_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Into `path`, whole or not at all; goes on where an earlier try to the same path was cut off."""

    def read(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The object's bytes in chunks of about 1 MiB. Raises ObjectNotFound before the first."""

    def stat(self, key: str) -> ObjectInfo | None: ...

    def copy(self, source: str, target: str) -> None:
        """Inside the store, never through memory. Raises ObjectNotFound."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects under `prefix`, which ends in '/' or is empty."""

    def delete(self, key: str) -> None:
        """Nothing happens where it is not there."""

    def link(self, key: str, disposition: str) -> str | None:
        """An address from which whoever has it may get the object for some minutes, as an answer with this
        `Content-Disposition`; None where the store cannot be reached from outside."""

    def prepare(self) -> Sequence[str]:
        """Make what the store lacks before its first use; what was made. What is there stays as it is."""

    def ping(self) -> None:
        """Raises StoreUnavailable with a sentence when the store cannot be used."""
