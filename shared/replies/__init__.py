"""The frames of answers on their way back. `connect` picks the adapter from the URL."""

from __future__ import annotations

from shared.replies.port import Replies, RepliesUnavailable
from shared.settings import Settings, SettingsError, naming, shown
from shared.starting import Need


@naming("LLMOS_REDIS_URL")
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


@naming("LLMOS_REDIS_URL")
def ping(url: str) -> None:
    """Raises RepliesUnavailable with a sentence when the server does not answer, SettingsError when it refuses us."""
    if url.partition("://")[0] == "memory":
        return
    import redis

    from shared import valkey

    try:
        valkey.ping(url)
    except redis.AuthenticationError as error:
        raise SettingsError(f"LLMOS_REDIS_URL: the server refuses: {error}") from None
    except (redis.RedisError, OSError) as error:
        raise RepliesUnavailable(f"the server for replies does not answer: {error}") from error


def need(settings: Settings) -> Need:
    """The server for replies, as a start needs it."""
    url = settings.redis_url
    return Need("the server for replies", lambda: ping(url), (RepliesUnavailable,), settings.init_timeout_s)
