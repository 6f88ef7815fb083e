"""Objects in a bucket of MinIO or any other S3."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Lock
from typing import BinaryIO, cast

import structlog
from minio.commonconfig import ENABLED, ComposeSource, CopySource, Filter
from minio.error import S3Error
from minio.helpers import check_bucket_name
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, LifecycleConfig, Rule
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential
from urllib3.exceptions import HTTPError, ProtocolError

from shared.settings import SettingsError
from shared.store.disk import CHUNK_BYTES, meaning, part_of
from shared.store.keys import check_key, check_prefix
from shared.store.port import ObjectInfo, OnBytes, StoreUnavailable, StoreUninitialized
from shared.store.s3_client import MultipartClient, explained, make_client, make_signer
from shared.store.s3_http import timed_out
from shared.store.s3_upload import Upload

RANGE_BYTES = 8 * 2**20
WINDOW = 4
"""Ranges fetched ahead of the reader: so many connections, and so many times RANGE_BYTES of memory."""
THREADS = 8
LINK_LIVES = timedelta(minutes=15)
SWEPT_AFTER_DAYS = 2
SWEEP = "llmos-uploads-cut-off"
NO_SUCH_RULE = {"InvalidArgument", "MalformedXML", "NotImplemented"}
"""What a server says to the rule that does not know it: MinIO, which sweeps by itself, and others."""
COPY_PART_BYTES = 512 * 2**20
"""One request copies no more than this, so that it answers within the client's timeout."""

Chunks = list[bytes]
log = structlog.get_logger(__name__)


class S3Store:
    """One bucket, which `prepare` makes. Threads move the parts of large objects side by side.

    An object appears when its upload is complete. Uploads that a killed process left incomplete are invisible; a
    lifecycle rule of the bucket (`AbortIncompleteMultipartUpload`) frees their room.
    """

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        access_key: str,
        secret_key: str,
        secure: bool = False,
        public_url: str = "",
    ) -> None:
        """`public_url`: where clients reach the same store, if they do; it may be another name than `endpoint`."""
        try:
            check_bucket_name(bucket, strict=True)
            self._client = make_client(endpoint, access_key, secret_key, secure=secure, connections=2 * THREADS)
            self._outside = make_signer(public_url, access_key, secret_key) if public_url else None
        except ValueError as error:
            raise SettingsError(f"LLMOS_STORE_URL: s3://…/{bucket} is no store: {error}") from None
        self._endpoint = endpoint
        self._bucket = bucket
        self._ready = False
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._cut_off: dict[str, str] = {}

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._on(key) as client:
            client.put_object(self._bucket, key, io.BytesIO(data), len(data))

    def put_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            with self._upload(key, size_bytes, on_bytes, goes_on=True) as upload:
                while chunk := file.read(upload.part_bytes):
                    upload.write(chunk)

    @contextmanager
    def writer(self, key: str) -> Iterator[BinaryIO]:
        with self._upload(key) as upload:
            yield cast(BinaryIO, upload)

    def get_bytes(self, key: str) -> bytes:
        with self._on(key) as client, closing(client.get_object(self._bucket, key)) as response:
            return cast(bytes, response.read())

    def get_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        size, etag = self._stat(key)
        try:
            with part_of(path, f"{self._bucket} {key} {etag} {size}") as part:
                have = part.seek(0, os.SEEK_END)
                if on_bytes and have:
                    on_bytes(have)
                for chunk in self._ranges(key, etag, have, size):
                    part.write(chunk)
                    if on_bytes:
                        on_bytes(len(chunk))
        except OSError as error:
            raise meaning(error, f"the file {path}") from error

    def read(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        size, etag = self._stat(key)
        return self._ranges(key, etag, offset, size if length is None else min(size, offset + length))

    def stat(self, key: str) -> ObjectInfo | None:
        with self._on(key) as client:
            try:
                return ObjectInfo(key, client.stat_object(self._bucket, key).size)
            except S3Error as error:
                if error.code == "NoSuchKey":
                    return None
                raise

    def copy(self, source: str, target: str) -> None:
        size, _ = self._stat(source)
        with self._on(target) as client:
            if size <= COPY_PART_BYTES:
                client.copy_object(self._bucket, target, CopySource(self._bucket, source))
                return
            starts = range(0, size, COPY_PART_BYTES)
            parts = [
                ComposeSource(self._bucket, source, offset=start, length=min(COPY_PART_BYTES, size - start))
                for start in starts
            ]
            client.compose_object(self._bucket, target, parts)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._asking(f"the list of {check_prefix(prefix)!r}") as client:
            for found in client.list_objects(self._bucket, prefix, recursive=True):
                if not found.is_dir:
                    yield ObjectInfo(found.object_name, found.size)

    def delete(self, key: str) -> None:
        with self._on(key) as client:
            client.remove_object(self._bucket, key)

    def link(self, key: str, disposition: str) -> str | None:
        if self._outside is None:
            return None
        with self._on(key) as client:
            region = client.region(self._bucket)
        headers = {"response-content-disposition": disposition}
        return self._outside.link(self._bucket, key, region, LINK_LIVES, headers)

    def prepare(self) -> Sequence[str]:
        made = []
        with explained(self._endpoint, f"bucket {self._bucket!r}"):
            if self._make_bucket():
                made.append(f"bucket {self._bucket}")
            if self._sweep_what_killed_uploads_left():
                made.append("lifecycle rule for uploads that were cut off")
        return made

    def ping(self) -> None:
        self._ready = False
        with self._asking("its bucket"):
            pass

    def _stat(self, key: str) -> tuple[int, str]:
        with self._on(key) as client:
            found = client.stat_object(self._bucket, key)
            return found.size, found.etag

    @contextmanager
    def _upload(
        self, key: str, size_bytes: int = 0, on_bytes: OnBytes | None = None, goes_on: bool = False
    ) -> Iterator[Upload]:
        """`goes_on`: what a server that went away has of it is used by the next such upload of this process."""
        with self._on(key) as client:
            begun = self._cut_off.pop(key, "") if goes_on else ""
            upload = Upload(client, self._threads(), self._endpoint, self._bucket, key, size_bytes, on_bytes, begun)
        try:
            yield upload
            upload.finish()
        except BaseException as error:
            if goes_on and isinstance(error, StoreUnavailable) and (begun := upload.leave()):
                self._cut_off[key] = begun
            else:
                upload.abort()
            raise

    def _ranges(self, key: str, etag: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to `end`, in order, with a few ranges on their way ahead."""
        todo = deque(range(start, end, RANGE_BYTES))
        coming: deque[Future[Chunks]] = deque()
        fetch = partial(self._range, key, etag, end)
        try:
            while todo or coming:
                while todo and len(coming) < WINDOW:
                    coming.append(self._threads().submit(fetch, todo.popleft()))
                yield from coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()

    def _range(self, key: str, etag: str, end: int, start: int) -> Chunks:
        length = min(RANGE_BYTES, end - start)
        with self._on(key) as client:
            return _fetched(client, self._bucket, key, start, length, etag)

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
            return self._pool

    def _on(self, key: str) -> AbstractContextManager[MultipartClient]:
        return self._asking(f"object {check_key(key)!r} in bucket {self._bucket!r}")

    @contextmanager
    def _asking(self, what: str) -> Iterator[MultipartClient]:
        """The client, once the bucket is there; its errors become the port's."""
        with explained(self._endpoint, what):
            if not self._ready:
                self._find_bucket()
                self._ready = True
            yield self._client

    def _find_bucket(self) -> None:
        """A bucket is made by `prepare` only: a misspelt name must not become an empty store."""
        if not self._client.bucket_exists(self._bucket):
            raise StoreUninitialized(
                f"the S3 store at {self._endpoint} has no bucket {self._bucket!r}: `llmos admin init` makes it"
            )

    def _make_bucket(self) -> bool:
        """Whether it was missing."""
        if self._client.bucket_exists(self._bucket):
            return False
        try:
            self._client.make(self._bucket)
        except S3Error as error:
            if error.code not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:  # another process was faster
                raise
        return True

    def _sweep_what_killed_uploads_left(self) -> bool:
        """The rule that ends them, unless the bucket has rules of its own or the server sweeps by itself, as MinIO."""
        if self._client.get_bucket_lifecycle(self._bucket) is not None:
            return False
        abort = AbortIncompleteMultipartUpload(days_after_initiation=SWEPT_AFTER_DAYS)
        rule = Rule(ENABLED, rule_filter=Filter(prefix=""), rule_id=SWEEP, abort_incomplete_multipart_upload=abort)
        try:
            self._client.set_bucket_lifecycle(self._bucket, LifecycleConfig([rule]))
        except S3Error as error:
            if error.code not in NO_SUCH_RULE:
                log.warning("no_lifecycle_rule", bucket=self._bucket, reason=f"{error.code}: {error.message}")
            return False
        return True


@retry(
    retry=retry_if_exception(lambda error: isinstance(error, HTTPError) and not timed_out(error)),
    stop=stop_after_attempt(3),
    wait=wait_exponential(0.2, max=2),
    reraise=True,
)
def _fetched(client: MultipartClient, bucket: str, key: str, start: int, length: int, etag: str) -> Chunks:
    """One range of one content. The client tries the request again, this the body that breaks off."""
    condition = {"If-Match": f'"{etag}"'}
    with closing(client.get_object(bucket, key, start, length, request_headers=condition)) as response:
        chunks = list(response.stream(CHUNK_BYTES))
    if (came := sum(map(len, chunks))) != length:
        raise ProtocolError(f"object {key!r} broke off: {came} of {length} bytes came")
    return chunks
