"""What comes in: JSON that can go on to the bus and into SQL, and what makes two requests the same one."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Annotated, Any

import orjson
from fastapi import Depends, Header, Query, Request
from pydantic import BaseModel, ConfigDict, model_validator

from services.gateway.auth import Caller
from services.gateway.errors import BadRequest
from services.gateway.submissions import Asked

DEEPEST = 32
INT64 = 2**63
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Body(BaseModel):
    """A JSON body. Unknown fields are errors, and so is what JSON can say but the system cannot keep."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _can_be_kept(cls, value: Any) -> Any:
        check_keepable(value)
        return value


def check_keepable(value: Any, depth: int = 0) -> None:
    """No NUL, no half surrogate pairs, no NaN, no integer over 64 bits, no abyss of brackets. Raises ValueError."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    match value:
        case str():
            _check_text(value)
        case float() if not math.isfinite(value):
            raise ValueError("NaN and Infinity are no JSON numbers")
        case int() if not -INT64 <= value < INT64:
            raise ValueError("an integer has more than 64 bits")
        case dict():
            for key, item in value.items():
                check_keepable(key, depth + 1)
                check_keepable(item, depth + 1)
        case list():
            for item in value:
                check_keepable(item, depth + 1)


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ValueError("a text contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text is not valid Unicode") from None


async def _asked(
    request: Request,
    caller: Caller,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="Your own name for this request: sent twice, done once.")
    ] = None,
    x_stainless_retry_count: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Asked:
    if idempotency_key is not None and not idempotency_key.isprintable():
        raise BadRequest("Idempotency-Key must be printable text.", param="Idempotency-Key", code="invalid_value")
    return Asked(
        tenant=caller.tenant,
        operation=f"{request.method} {request.url.path}",
        body_hash=hash_of(await request.body()),
        key=idempotency_key or None,
        retried=_is_retry(x_stainless_retry_count),
        traceparent=_trace(request),
    )


def asked_with(caller_tenant: str, request: Request, body_hash: str) -> Asked:
    """As the dependency, for a body that was not kept: its hash is told."""
    return Asked(
        tenant=caller_tenant,
        operation=f"{request.method} {request.url.path}",
        body_hash=body_hash,
        key=request.headers.get("idempotency-key") or None,
        retried=_is_retry(request.headers.get("x-stainless-retry-count")),
        traceparent=_trace(request),
    )


def hash_of(raw: bytes) -> str:
    """Of the body's meaning where it is JSON: spaces and the order of fields do not matter."""
    try:
        raw = orjson.dumps(orjson.loads(raw), option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):  # it reads deeper nesting than it writes
        pass
    return hashlib.sha256(raw).hexdigest()


def _trace(request: Request) -> str | None:
    """The header `traceparent` where it is one: https://www.w3.org/TR/trace-context/#traceparent-header."""
    header = request.headers.get("traceparent", "")
    return header if TRACEPARENT.fullmatch(header) else None


def _is_retry(count: str | None) -> bool:
    return bool(count and count.isascii() and count.isdigit() and int(count[:9]) > 0)


Asking = Annotated[Asked, Depends(_asked)]
"""What a route writes to make its command once, however often it is asked."""

After = Annotated[str | None, Query(max_length=255, description="The last id of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Items per page.")]
