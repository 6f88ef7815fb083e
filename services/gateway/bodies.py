"""What comes in: the form of bodies and cursors, and what makes two requests the same one."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

import orjson
from fastapi import Depends, Header, Query, Request
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from services.gateway.auth import Caller
from services.gateway.errors import BadRequest
from services.gateway.submissions import Asked
from shared.contracts.artifacts import NAME_PATTERN
from shared.contracts.written import Written

TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Body(Written):
    """A JSON body. Unknown fields are errors."""


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

INVALID_CURSOR = "invalid_cursor"


def cursor(form: str) -> AfterValidator:
    """Another form is no id of a page. An id of the right form may be gone since: it still is a place to go on from."""
    pattern = re.compile(form)

    def check(after: str | None) -> str | None:
        if after and not pattern.fullmatch(after):
            raise PydanticCustomError(
                INVALID_CURSOR, "{after} is no cursor; take the 'last_id' of the page before", {"after": repr(after)}
            )
        return after or None

    return AfterValidator(check)


_AFTER = Query(max_length=255, description="The last id of the page before.")
After = Annotated[str | None, _AFTER]
AfterJob = Annotated[str | None, _AFTER, cursor(r"job-[0-9a-f]{28}")]
AfterFile = Annotated[str | None, _AFTER, cursor(r"file-[0-9a-f]{28}")]
AfterName = Annotated[str | None, _AFTER, cursor(NAME_PATTERN.pattern)]
AfterEvent = Annotated[str | None, _AFTER, cursor(r"ftevent-[a-z]+-\d+-\d+")]
AfterCheckpoint = Annotated[str | None, _AFTER, cursor(r"ftckpt-job-[0-9a-f]{28}-\d+-\d+")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Items per page.")]
