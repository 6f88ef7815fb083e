"""One object on its way into S3: in one piece when it is small, else in parts side by side."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait

import structlog
from minio.datatypes import Part
from minio.error import S3Error
from typing_extensions import Buffer

from shared.store.port import OnBytes, StoreError
from shared.store.s3_client import MultipartClient, explained

log = structlog.get_logger(__name__)

PART_BYTES = 8 * 2**20
LARGE_PART_BYTES = 64 * 2**20
SMALL_PARTS = 1000
"""Parts of PART_BYTES before larger ones, so that a stream of unknown length stays under S3's 10,000 parts."""
MAX_PARTS = 9000
WINDOW = 3
"""Parts on their way at once: so many times the part's size of memory."""


class Upload(io.RawIOBase):
    """Bytes are pushed with `write`; the object is there once `finish` returns. Else call `abort`, or `leave` and begin
    another one with what it returns: that sends only the parts which are not there yet."""

    def __init__(
        self,
        client: MultipartClient,
        threads: ThreadPoolExecutor,
        endpoint: str,
        bucket: str,
        key: str,
        size_bytes: int = 0,
        on_bytes: OnBytes | None = None,
        begun: str = "",
    ) -> None:
        self._client = client
        self._threads = threads
        self._endpoint = endpoint
        self._bucket = bucket
        self._key = key
        self._least = max(PART_BYTES, -(-size_bytes // MAX_PARTS))
        self._on_bytes = on_bytes
        self._buffer = bytearray()
        self._begun = begun
        self._upload_id = ""
        self._there: dict[int, Part] = {}
        self._number = 0
        self._coming: deque[tuple[Future[Part], int]] = deque()
        self._done: list[Part] = []

    @property
    def part_bytes(self) -> int:
        """The next part's size."""
        return self._least if self._number < SMALL_PARTS else max(self._least, LARGE_PART_BYTES)

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        size = memoryview(data).nbytes
        self._buffer += data
        while len(self._buffer) > self.part_bytes:  # the last part is never empty
            part = bytes(memoryview(self._buffer)[: self.part_bytes])
            del self._buffer[: len(part)]
            self._send(part)
        return size

    def finish(self) -> None:
        """Send the rest and make the object appear."""
        rest = bytes(self._buffer)
        with explained(self._endpoint, self._what):
            if not self._upload_id:
                self._client.put_object(self._bucket, self._key, io.BytesIO(rest), len(rest))
                self._tell(len(rest))
                return
            self._send(rest)
            while self._coming:
                self._collect()
            self._client.complete(self._bucket, self._key, self._upload_id, self._done)

    def leave(self) -> str:
        """Let the parts lie, invisible. The id is empty where there are none."""
        for future, _ in self._coming:
            future.cancel()
        wait([future for future, _ in self._coming])
        return self._upload_id or self._begun

    def abort(self) -> None:
        """Forget the parts. Where the server is away they stay there, invisible."""
        self.leave()
        if not self._upload_id:
            return
        try:
            with explained(self._endpoint, self._what):
                self._client.abort(self._bucket, self._key, self._upload_id)
        except StoreError as error:
            log.warning("upload_left_incomplete", key=self._key, error=str(error))

    def _send(self, data: bytes) -> None:
        with explained(self._endpoint, self._what):
            if not self._upload_id:
                self._upload_id = self._go_on() or self._client.begin(self._bucket, self._key)
            if len(self._coming) == WINDOW:
                self._collect()
            self._number += 1
            self._coming.append((self._threads.submit(self._part, data, self._number), len(data)))

    def _part(self, data: bytes, number: int) -> Part:
        there = self._there.get(number)
        if there and there.etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return there
        return self._client.upload(self._bucket, self._key, data, self._upload_id, number)

    def _go_on(self) -> str:
        """The id of the upload that was begun, if the server still has it."""
        if self._begun:
            try:
                self._there = self._client.uploaded(self._bucket, self._key, self._begun)
            except S3Error as error:
                if error.code != "NoSuchUpload":
                    raise
                self._begun = ""
        return self._begun

    def _collect(self) -> None:
        future, size_bytes = self._coming.popleft()
        self._done.append(future.result())
        self._tell(size_bytes)

    def _tell(self, size_bytes: int) -> None:
        if self._on_bytes and size_bytes:
            self._on_bytes(size_bytes)

    @property
    def _what(self) -> str:
        return f"object {self._key!r} in bucket {self._bucket!r}"
