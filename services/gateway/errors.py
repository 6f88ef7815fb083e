"""What the API answers when it cannot do what was asked: one tree, one envelope.

ApiError
├── BadRequest        400  the request itself is wrong; `param` names the field
├── Unauthorized      401  no key, or not one of ours
├── Forbidden         403  a limit of the tenant that waiting does not lift
├── NotFound          404  no such thing
├── Conflict          409  it cannot be done in the state that things are in
├── TooLarge          413  body or upload over the limit
├── UnsupportedMedia  415  another content type is needed
├── NoSuchRange       416  the object is shorter than that
├── TooMany           429  a limit that waiting does lift
├── Unavailable       503  something that is needed is away; try again
└── NoRoom            507  the store or the database's disk is full
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from structlog import get_logger

from services.gateway.room import disk_of
from shared.bus.port import BusError
from shared.db import AWAY, is_full
from shared.store.port import ObjectNotFound, StoreError, StoreFull

log = get_logger("gateway")


class ApiError(Exception):
    """An answer that is no success: one sentence for a person, and words for a program."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def envelope(self) -> dict[str, Any]:
        """The body of the answer, as OpenAI's clients read it."""
        return envelope(self.message, self.type, self.param, self.code)

    def response(self) -> JSONResponse:
        return JSONResponse(self.envelope(), self.status, headers=self.headers)


class BadRequest(ApiError):
    status = 400
    type = "invalid_request_error"


class Unauthorized(ApiError):
    status = 401
    type = "authentication_error"


class Forbidden(ApiError):
    status = 403
    type = "permission_error"


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"


class Conflict(ApiError):
    status = 409
    type = "conflict_error"


class TooLarge(ApiError):
    status = 413
    type = "invalid_request_error"


class UnsupportedMedia(ApiError):
    status = 415
    type = "invalid_request_error"


class NoSuchRange(ApiError):
    status = 416
    type = "invalid_request_error"


class TooMany(ApiError):
    status = 429
    type = "rate_limit_error"


class Unavailable(ApiError):
    """Says when to come again: SDKs read `Retry-After`."""

    status = 503
    type = "service_unavailable"

    def __init__(self, message: str, *, retry_after_s: int = 5, code: str | None = None) -> None:
        super().__init__(message, code=code, headers={"Retry-After": str(retry_after_s)})


class NoRoom(ApiError):
    status = 507
    type = "insufficient_storage"


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def envelope(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def install(app: FastAPI) -> None:
    """Turn every exception that leaves a route into the envelope."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(BusError, _away)
    app.add_exception_handler(StoreError, _store_error)
    for database_away in AWAY:
        app.add_exception_handler(database_away, _away)
    app.add_exception_handler(DataError, _cannot_be_kept)
    app.add_exception_handler(Exception, _unexpected)


def from_validation(errors: list[Any], asked: Any = None) -> BadRequest:
    """pydantic's first error as one sentence that names the field. `asked` is the body that it was found in."""
    first = errors[0]
    source, *path = first["loc"]
    where = (
        path[:1] if source in ("query", "path", "header") else _path(path if source == "body" else first["loc"], asked)
    )
    param = ".".join(str(part) for part in where) or None
    match first["type"]:
        case "json_invalid":
            return BadRequest(f"The body is not valid JSON: {first['ctx']['error']}.", code="invalid_json")
        case "extra_forbidden":
            return BadRequest(f"Unknown field {param!r}.", param=param, code="unknown_field")
        case "missing" if param is None:
            return BadRequest("The body is missing: send a JSON object.", code="missing_body")
        case "missing":
            return BadRequest(f"The field {param!r} is missing.", param=param, code="missing_field")
        case "model_attributes_type" | "model_type" | "dict_type" if param is None:
            return BadRequest("The body must be a JSON object.", code="invalid_value")
        case "value_error":
            return BadRequest(f"{param or 'The body'}: {first['ctx']['error']}.", param=param, code="invalid_value")
        case kind:
            code = kind if kind == "invalid_cursor" else "invalid_value"
            return BadRequest(f"{param or 'The body'}: {first['msg']}.", param=param, code=code)


def _path(loc: Sequence[int | str], value: Any) -> list[int | str]:
    """The part of a place that is the client's: pydantic also names the member of a union that it tried last."""
    path: list[int | str] = []
    for part in loc:
        match value:
            case dict():
                value = value.get(part)
            case list() if isinstance(part, int) and part < len(value):
                value = value[part]
            case _:
                continue
        path.append(part)
    return path


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return from_validation(list(error.errors()), error.body).response()


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ApiError):  # raised while FastAPI read the body
        return error.__cause__.response()
    message = {
        404: f"There is no {request.method} {request.url.path} here; /docs lists what there is.",
        405: f"{request.url.path} does not take {request.method}.",
    }.get(error.status_code, str(error.detail))
    kind = _TYPES.get(error.status_code, "invalid_request_error" if error.status_code < 500 else "server_error")
    return JSONResponse(envelope(message, kind), error.status_code, headers=error.headers)


async def _store_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, StoreFull):
        return NoRoom(f"The object store is full: {error}", code="store_full").response()
    if isinstance(error, ObjectNotFound):
        return NotFound(f"The store has lost this object: {error}", code="object_missing").response()
    return await _away(request, error)


async def _away(request: Request, error: Exception) -> JSONResponse:
    log.warning("needed_part_away", path=request.url.path, error=str(error).partition("\n")[0])
    if is_full(error):
        disk = disk_of(request.app.state.gateway.settings)
        return NoRoom(f"T{disk[1:]} is full: make room there and send it again.", code="disk_full").response()
    part = "store" if isinstance(error, StoreError) else "bus" if isinstance(error, BusError) else "database"
    return Unavailable(f"The {part} does not answer now; try again in a few seconds.", code=f"{part}_away").response()


async def _cannot_be_kept(request: Request, error: Exception) -> JSONResponse:
    """What no check of ours refused and the database does: a number, a date or a text beyond its bounds."""
    log.warning("value_refused_by_database", path=request.url.path, error=str(error).splitlines()[0])
    return BadRequest("A value in the request is beyond what can be kept here.", code="invalid_value").response()


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected_error", path=request.url.path, exc_info=error)
    return JSONResponse(envelope("Something went wrong here; the server's log has the details.", "server_error"), 500)
