"""The frames of answers on their way back. `connect` picks the adapter from the URL."""

from __future__ import annotations

from shared.replies.port import Replies
from shared.settings import SettingsError, shown


def connect(url: str) -> Replies:
    """One end of the replies at `url`; nothing is sent yet. Raises SettingsError for a URL that names no adapter."""
    scheme = url.partition("://")[0]
    if scheme == "memory":
        from shared.replies.memory import connect_memory

        return connect_memory(url)
    if scheme in {"unix", "redis", "rediss"}:
        from shared.replies.valkey import ValkeyReplies

        return ValkeyReplies(url)
    raise SettingsError(
        f"LLMOS_REDIS_URL: {shown(url)} names no server for replies; use unix:///path, redis://host:port/0 or memory://"
    )
