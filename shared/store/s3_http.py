"""How long the S3 client waits: a server that hangs is told soon, one that works on something large is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import urllib3
from typing_extensions import Buffer
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NewConnectionError, ProtocolError
from urllib3.exceptions import TimeoutError as TimedOut
from urllib3.response import BaseHTTPResponse

CONNECT_S = 5
QUIET_S = 10
"""Between a small request and its answer, and within an answer."""
SLOWEST_BYTES_PER_S = 2**20
"""A server that takes a part's last bytes may have to write the part down before it answers."""
WORKS_S = 120
"""A server that copies, or makes one object of many parts, says nothing meanwhile."""
PIECE_BYTES = 64 * 2**10


def quiet_s(method: str, url: str, headers: Mapping[str, str], size_bytes: int) -> float:
    """How long the server may say nothing about this request."""
    completes = method == "POST" and "uploadId=" in url
    if completes or "x-amz-copy-source" in {name.lower() for name in headers}:
        return WORKS_S
    return QUIET_S + size_bytes / SLOWEST_BYTES_PER_S


def timed_out(error: BaseException | None) -> bool:
    """Whether the time was over, rather than that the server refused or broke off."""
    if isinstance(error, ProtocolError):  # while the request was being sent
        return any(isinstance(cause, TimeoutError) for cause in error.args)
    return isinstance(error, TimedOut) and not isinstance(error, NewConnectionError)


class Retries(urllib3.Retry):
    """Tries again what failed at once; what took all its time would only take it again."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: BaseHTTPResponse | None = None,
        error: Exception | None = None,
        *rest: Any,
        **more: Any,
    ) -> Self:
        if error is not None and timed_out(error):
            raise error
        return super().increment(method, url, response, error, *rest, **more)


class Connections(urllib3.PoolManager):
    """Connections whose silence is bounded by what is asked for."""

    def __init__(self, connections: int) -> None:
        retries = Retries(total=3, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504])
        super().__init__(maxsize=connections, retries=retries)
        self.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def urlopen(  # type: ignore[override]  # as the class above has it, which its own base does not allow
        self, method: str, url: str, redirect: bool = True, **more: Any
    ) -> BaseHTTPResponse:
        read_s = quiet_s(method, url, more.get("headers") or {}, len(more.get("body") or b""))
        timeout = urllib3.Timeout(connect=CONNECT_S, read=read_s)
        return super().urlopen(method, url, redirect, **{"timeout": timeout, **more})


class _InPieces(HTTPConnection):
    """A socket's timeout is for all that one call sends: a large part through a slow line would never fit."""

    def send(self, data: Any) -> None:
        if not isinstance(data, Buffer):
            super().send(data)
            return
        rest = memoryview(data)
        for start in range(0, rest.nbytes, PIECE_BYTES):
            super().send(rest[start : start + PIECE_BYTES])


class _InSecurePieces(_InPieces, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _InPieces


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _InSecurePieces
