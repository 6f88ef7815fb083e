"""How every adapter reaches a Valkey (or Redis) server: addresses and timeouts."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.outage import Outage as Outage
from shared.settings import SettingsError

SOCKET_TIMEOUT_S = 5.0
BLOCK_MS = 4000
"""How long a read waits for news: less than the socket's timeout."""

_SCHEMES = {
    "valkey+unix": "unix",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
    "redis": "redis",
    "rediss": "rediss",
}


def redis_url(url: str) -> str:
    """`url` in the form that redis-py takes. Raises SettingsError."""
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES or not rest:
        raise SettingsError(f"{url!r} is no address of a Valkey server; use unix:///path or redis://host:port/0")
    return f"{_SCHEMES[scheme]}://{rest}"


# The clients never repeat a command on their own: whether it may come twice is for the adapters to know.


def client(url: str, **options: Any) -> redis.Redis:
    """A client for threads; connects at the first command. Raises SettingsError."""
    options = {"socket_timeout": SOCKET_TIMEOUT_S, "retry": Retry(NoBackoff(), 0), **options}
    try:
        return redis.Redis.from_url(redis_url(url), **options)
    except ValueError as error:
        raise SettingsError(f"{url!r} is no address of a Valkey server: {error}") from error


def async_client(url: str, **options: Any) -> redis.asyncio.Redis:
    """A client for asyncio; connects at the first command. Raises SettingsError."""
    options = {"socket_timeout": SOCKET_TIMEOUT_S, "retry": AsyncRetry(NoBackoff(), 0), **options}
    try:
        return redis.asyncio.Redis.from_url(redis_url(url), **options)
    except ValueError as error:
        raise SettingsError(f"{url!r} is no address of a Valkey server: {error}") from error
