"""What a client asks of a model, and until when."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Scope

from services.gateway.inference.body import Body
from services.gateway.inference.errors import InvalidRequest

TIMEOUT_HEADER = "x-request-timeout-ms"


@dataclass(frozen=True)
class Call:
    """One question. `deadline` is of the event loop's clock."""

    tenant: str
    path: str
    body: Body
    timeout_s: float
    deadline: float
    traceparent: str | None = None


def make_call(scope: Scope, path: str, tenant: str, body: Body, default_timeout_s: float) -> Call:
    """The call of a request, with the deadline of its header or the default. Raises InvalidRequest."""
    headers = Headers(scope=scope)
    timeout_s = _timeout_s(headers.get(TIMEOUT_HEADER), default_timeout_s)
    deadline = asyncio.get_running_loop().time() + timeout_s
    return Call(tenant, path, body, timeout_s, deadline, headers.get("traceparent"))


def _timeout_s(header: str | None, default_s: float) -> float:
    if header is None:
        return default_s
    if not (header.isascii() and header.isdigit() and int(header[:10]) > 0 and len(header) <= 10):
        raise InvalidRequest(
            f"The header {TIMEOUT_HEADER} must be a whole number of milliseconds above 0, not {header[:40]!r}.",
            param=TIMEOUT_HEADER,
        )
    return int(header) / 1000
