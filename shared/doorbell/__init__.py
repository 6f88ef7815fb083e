"""Doorbells to nodes. `connect` picks the adapter from the URL."""

from __future__ import annotations

from shared.doorbell.port import Doorbell
from shared.settings import SettingsError, shown


def connect(redis_url: str) -> Doorbell:
    """The doorbells at `redis_url`; nothing is sent yet. Raises SettingsError for a URL that names no adapter."""
    scheme = redis_url.partition("://")[0]
    if scheme == "memory":
        from shared.doorbell.memory import MemoryDoorbell

        return MemoryDoorbell()
    if scheme in {"unix", "redis", "rediss"}:
        from shared.doorbell.celery import CeleryDoorbell

        return CeleryDoorbell(redis_url)
    raise SettingsError(
        f"LLMOS_REDIS_URL: {shown(redis_url)} names no server for doorbells; "
        "use unix:///path, redis://host:port/0 or memory://"
    )
