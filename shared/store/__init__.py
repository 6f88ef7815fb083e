"""The object store: where all large bytes lie. `connect` picks the adapter by the URL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shared.settings import Settings, SettingsError, shown
from shared.starting import Need
from shared.store.port import ObjectStore, StoreError, StoreRefuses


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
            public_url=settings.s3_public_url,
        )
    raise SettingsError(f"LLMOS_STORE_URL: {shown(url)} is neither file:///folder nor s3://host:port/bucket")


def prepare(settings: Settings) -> Sequence[str]:
    """Make what the store lacks; what was made. Raises StoreUnavailable where waiting helps, else SettingsError."""
    with _refusals_are_settings():
        return connect(settings).prepare()


def check_access(store: ObjectStore) -> None:
    """At a start. Raises as `prepare` does."""
    with _refusals_are_settings():
        store.ping()


def need(store: ObjectStore, settings: Settings) -> Need:
    """The object store, as a start needs it."""
    return Need("the object store", lambda: check_access(store), (StoreError,), settings.init_timeout_s)


@contextmanager
def _refusals_are_settings() -> Iterator[None]:
    try:
        yield
    except StoreRefuses as error:
        raise SettingsError(f"LLMOS_S3_ACCESS_KEY, LLMOS_S3_SECRET_KEY: {error}") from None
