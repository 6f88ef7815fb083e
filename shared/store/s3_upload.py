"""One object on its way into S3: in one piece when it is small, else in parts side by side."""

from __future__ import annotations

import io
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait

import structlog
from minio.datatypes import Part
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
    """Bytes are pushed with `write`; the object is there once `finish` returns. Else call `abort`."""

    def __init__(
        self,
        client: MultipartClient,
        threads: ThreadPoolExecutor,
        endpoint: str,
        bucket: str,
        key: str,
        size_bytes: int = 0,
        on_bytes: OnBytes | None = None,
    ) -> None:
        self._client = client
        self._threads = threads
        self._endpoint = endpoint
        self._bucket = bucket
        self._key = key
        self._least = max(PART_BYTES, -(-size_bytes // MAX_PARTS))
        self._on_bytes = on_bytes
        self._buffer = bytearray()
        self._upload_id = ""
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

    def abort(self) -> None:
        """Forget the parts. Where the server is away they stay there, invisible."""
        for future, _ in self._coming:
            future.cancel()
        wait([future for future, _ in self._coming])
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
                self._upload_id = self._client.begin(self._bucket, self._key)
            if len(self._coming) == WINDOW:
                self._collect()
            self._number += 1
            upload = self._client.upload
            future = self._threads.submit(upload, self._bucket, self._key, data, self._upload_id, self._number)
            self._coming.append((future, len(data)))

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
