"""ASGI middleware that keeps requests within bounds before any route sees them."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.errors import ApiError, BadRequest, TooLarge

UPLOADS = frozenset({"/v1/files"})
"""Paths that stream their body and bound it themselves."""


def announced_bytes(content_length: str | None) -> int:
    """What the client says that its body has; 0 where it does not say."""
    return int(content_length[:18]) if content_length and content_length.isdecimal() else 0


class BoundedBody:
    """Bodies over the limit: 413, and no more of them is kept than the limit. NUL in the address: 400."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_address(scope)
            bounded = scope["path"].rstrip("/") not in UPLOADS
            if bounded:
                self._check_length(Headers(scope=scope).get("content-length"))
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, self._counted(receive) if bounded else receive, send)

    def _check_address(self, scope: Scope) -> None:
        if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
            raise BadRequest("The address contains a NUL byte.", code="invalid_address")

    def _check_length(self, header: str | None) -> None:
        if announced_bytes(header) > self._limit:
            raise self._too_large()

    def _counted(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"The body is larger than {self._limit} bytes; send data as a file through /v1/files.",
            code="body_too_large",
        )
