"""The `minio` client with the parts of a multipart upload within reach, and what its errors mean."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import cast
from urllib.parse import urlsplit
from xml.etree import ElementTree

import urllib3
from minio import Minio
from minio.datatypes import Part
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from shared.store.port import ObjectNotFound, StoreFull, StoreRefuses, StoreUnavailable
from shared.store.s3_http import Connections
from shared.store.s3_silence import silence

NOT_THERE = {"NoSuchKey", "NoSuchObject", "ResourceNotFound"}
ELSEWHERE = "AuthorizationHeaderMalformed"
REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
NO_ROOM = {
    "EntityTooLarge",
    "InsufficientCapacity",
    "QuotaExceeded",
    "XMinioAdminBucketQuotaExceeded",
    "XMinioStorageFull",
}

logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each try again of its own would be a line


class MultipartClient(Minio):  # type: ignore[misc]
    """`Minio.put_object` reads from a stream and leaves its threads behind when that raises; here parts are pushed."""

    def begin(self, bucket: str, key: str) -> str:
        """The id of a new multipart upload."""
        return cast(str, self._create_multipart_upload(bucket, key, {"Content-Type": "application/octet-stream"}))

    def upload(self, bucket: str, key: str, data: bytes, upload_id: str, number: int) -> Part:
        return Part(number, self._upload_part(bucket, key, data, None, upload_id, number))

    def uploaded(self, bucket: str, key: str, upload_id: str) -> dict[int, Part]:
        """The parts that are there by their numbers. Raises S3Error where nothing is known of the upload."""
        found: dict[int, Part] = {}
        after = None
        while True:
            page = self._list_parts(bucket, key, upload_id, part_number_marker=after)
            found |= {part.part_number: part for part in page.parts}
            if not page.is_truncated:
                return found
            after = str(page.next_part_number_marker)

    def complete(self, bucket: str, key: str, upload_id: str, parts: list[Part]) -> None:
        self._complete_multipart_upload(bucket, key, upload_id, parts)

    def abort(self, bucket: str, key: str, upload_id: str) -> None:
        self._abort_multipart_upload(bucket, key, upload_id)

    def make(self, bucket: str) -> None:
        """A bucket where the server is: one that is not in us-east-1 says so in its refusal."""
        try:
            self.make_bucket(bucket)
        except S3Error as error:
            if error.code != ELSEWHERE:
                raise
            self.make_bucket(bucket, ElementTree.fromstring(error.response.data).findtext("Region"))

    def region(self, bucket: str) -> str:
        """Where the server says that the bucket is; asked once."""
        return cast(str, self._get_region(bucket))


class Signer(Minio):  # type: ignore[misc]
    """Only signs addresses, under a name of the store that need not be reachable from here: it never connects."""

    def link(self, bucket: str, key: str, region: str, lives: timedelta, headers: dict[str, str]) -> str:
        """An address by which whoever has it gets the object, answered with these headers."""
        self._region_map[bucket] = region  # else it would ask for it
        return cast(str, self.presigned_get_object(bucket, key, lives, response_headers=headers))


def make_client(endpoint: str, access_key: str, secret_key: str, *, secure: bool, connections: int) -> MultipartClient:
    """A client whose silence is bounded: a server that is away or hangs is told within seconds."""
    http = Connections(connections)
    return MultipartClient(endpoint, access_key or None, secret_key or None, secure=secure, http_client=http)


def make_signer(public_url: str, access_key: str, secret_key: str) -> Signer:
    """Raises ValueError."""
    address = urlsplit(public_url)
    if address.scheme not in {"http", "https"} or not address.netloc or address.path.strip("/"):
        raise ValueError(f"LLMOS_S3_PUBLIC_URL is https://host:port, not {public_url!r}")
    secure = address.scheme == "https"
    return Signer(address.netloc, access_key or None, secret_key or None, secure=secure)


@contextmanager
def explained(endpoint: str, what: str) -> Iterator[None]:
    """The port's errors for those of the client."""
    try:
        yield
    except S3Error as error:
        if error.code in NOT_THERE:
            raise ObjectNotFound(f"there is no {what}") from error
        if error.code in NO_ROOM:
            raise StoreFull(f"no room is left for {what}: {error.message}") from error
        kind = StoreRefuses if error.code in REFUSED else StoreUnavailable
        raise kind(f"the S3 store refuses {what}: {error.code}, {error.message}") from error
    except (ServerError, InvalidResponseError) as error:
        status = getattr(error, "status_code", None) or getattr(error, "_code", None)
        raise (StoreFull if status == 507 else StoreUnavailable)(
            f"the S3 store does not serve {what}: {error}"
        ) from error
    except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
        raise StoreUnavailable(silence(endpoint, what, error)) from error
