"""How a request is read: its body is JSON whatever its content type says, and nothing in it or its query is ignored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.routing import APIRoute

from services.gateway.errors import BadRequest

DEEPEST = 32
INT64 = 2**63
LONGEST_INTEGER = 20
"""Characters of a 64-bit integer; Python takes minutes, or refuses, to read one of a million."""


class StrictRoute(APIRoute):
    """A route that names what it does not understand. `curl -d` needs no header: it sends JSON as a form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known = [param.alias for param in get_flat_dependant(self.dependant).query_params]
        declared = [
            param["name"] for param in (self.openapi_extra or {}).get("parameters", ()) if param["in"] == "query"
        ]
        takes_json = self.body_field is not None

        async def strict(request: Request) -> Response:
            check_query(request.query_params.keys(), known, declared)
            return await handle(_JsonRequest(request) if takes_json else request)

        return strict


def check_query(given: Collection[str], known: Collection[str], mappings: Collection[str] = ()) -> None:
    """A mistyped filter would give everything. `mappings` are written `name[key]=value`. Raises BadRequest."""
    for name in given:
        if name not in known and name.partition("[")[0] not in mappings:
            takes = ", ".join([*known, *(f"{word}[…]" for word in mappings)]) or "none"
            raise BadRequest(
                f"Unknown query parameter {name!r}; there are: {takes}.", param=name, code="unknown_parameter"
            )


def read_json(raw: bytes) -> Any:
    """What the bytes say, where the system can keep it. Raises BadRequest that names the place."""
    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_int=_integer)
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"The body is not valid UTF-8: byte {error.start + 1} cannot be read.", code="invalid_utf8"
        ) from error
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
            code="invalid_json",
        ) from error
    except RecursionError as error:
        raise _unkept((), f"it is nested more than {DEEPEST} levels deep") from error
    check_keepable(value)
    return value


def check_keepable(value: Any, path: tuple[str, ...] = ()) -> None:
    """No NUL, no half surrogate pairs, no NaN, no integer over 64 bits, no abyss of brackets. Raises BadRequest."""
    if len(path) > DEEPEST:
        raise _unkept(path[:1], f"it is nested more than {DEEPEST} levels deep")
    match value:
        case str():
            _check_text(value, path)
        case float() if not math.isfinite(value):
            raise _unkept(path, "NaN and Infinity are no JSON numbers, and neither is one beyond 1.8e308")
        case int() if not -INT64 <= value < INT64:
            raise _unkept(path, "the integer has more than 64 bits")
        case dict():
            for key, item in value.items():
                _check_text(key, path)
                check_keepable(item, (*path, key))
        case list():
            for number, item in enumerate(value):
                check_keepable(item, (*path, str(number)))


def _check_text(text: str, path: tuple[str, ...]) -> None:
    if "\0" in text:
        raise _unkept(path, "the text contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _unkept(path, "the text is not valid Unicode: it holds half of a surrogate pair") from None


def _unkept(path: tuple[str, ...], why: str) -> BadRequest:
    param = ".".join(path) or None
    return BadRequest(f"{param or 'The body'}: {why}.", param=param, code="invalid_value")


def _integer(digits: str) -> int:
    return int(digits) if len(digits) <= LONGEST_INTEGER else INT64


class _JsonRequest(Request):
    """FastAPI reads bodies of JSON's content type only, and leaves out where it breaks."""

    def __init__(self, request: Request) -> None:
        others = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
        headers = [*others, (b"content-type", b"application/json")]
        super().__init__({**request.scope, "headers": headers}, request.receive)

    async def json(self) -> Any:
        return read_json(await self.body())
