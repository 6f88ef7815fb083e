"""The object store: where all large bytes lie. `connect` picks the adapter by the URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from shared.settings import Settings, SettingsError
from shared.store.port import ObjectStore


def connect(settings: Settings) -> ObjectStore:
    """The store of `LLMOS_STORE_URL`. Opens nothing yet. Raises SettingsError."""
    url = settings.effective_store_url
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.path and not parts.netloc:
        from shared.store.local import LocalStore

        return LocalStore(Path(unquote(parts.path)))
    bucket = parts.path.strip("/")
    if parts.scheme == "s3" and parts.netloc and bucket and "/" not in bucket:
        from shared.store.s3 import S3Store

        return S3Store(
            endpoint=parts.netloc,
            bucket=bucket,
            access_key=settings.s3_access_key,
            secret_key=settings.s3_secret_key,
            secure=settings.s3_secure,
        )
    raise SettingsError(f"LLMOS_STORE_URL: {url!r} is neither file:///folder nor s3://host:port/bucket")
