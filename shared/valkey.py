"""How every adapter reaches a Valkey (or Redis) server: addresses and timeouts."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from shared.settings import AddressError, shown

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
    """`url` in the form that redis-py takes. Raises AddressError."""
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES or not rest:
        raise AddressError(f"{shown(url)} is no address of a Valkey server; use unix:///path or redis://host:port/0")
    address = f"{_SCHEMES[scheme]}://{rest}"
    try:
        parse_url(address)  # type: ignore[no-untyped-call]
    except ValueError:  # its words repeat what it took for the port: a password's end, where that holds a /
        raise AddressError(
            f"{shown(url)} is no address of a Valkey server: its port must be a number, its options those of redis-py, "
            "and signs such as / in its password written as %2F"
        ) from None
    return address


# The clients never repeat a command on their own: whether it may come twice is for the adapters to know.


def client(url: str, **options: Any) -> redis.Redis:
    """A client for threads; connects at the first command. Raises AddressError."""
    options = {"socket_timeout": SOCKET_TIMEOUT_S, "retry": Retry(NoBackoff(), 0), **options}
    return redis.Redis.from_url(redis_url(url), **options)


def ping(url: str) -> None:
    """Raises AddressError, and what redis-py raises where the server does not answer or refuses us."""
    with client(url) as server:
        server.ping()


def async_client(url: str, **options: Any) -> redis.asyncio.Redis:
    """A client for asyncio; connects at the first command. Raises AddressError."""
    options = {"socket_timeout": SOCKET_TIMEOUT_S, "retry": AsyncRetry(NoBackoff(), 0), **options}
    return redis.asyncio.Redis.from_url(redis_url(url), **options)
