"""Who asks. The middleware refuses before the body is read; routes take the principal from `authenticated`."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.errors import ApiError, Unauthorized, Unavailable
from services.gateway.keys import Keys, Principal

OPEN = frozenset({"/", "/healthz", "/readyz", "/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
_scheme = HTTPBearer(auto_error=False, description="A key of this system: `Authorization: Bearer sk-llmos-…`")


class RequireKey:
    """ASGI middleware: every path but the open ones needs a key."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            try:
                principal = await self._principal(Headers(scope=scope).get("authorization"))
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
            scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, receive, send)

    async def _principal(self, header: str | None) -> Principal:
        scheme, _, key = (header or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized(
                "No API key was given: send 'Authorization: Bearer KEY'. The first key lies in the file 'key' of the "
                "system's home folder.",
                code="missing_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        try:
            principal = self._keys.remembered(key) or await to_thread.run_sync(self._keys.find, key)
        except (DBAPIError, PoolTimeout) as error:
            raise Unavailable("The database does not answer now; try again.", code="database_away") from error
        if principal is None:
            raise Unauthorized(
                "This API key is not known here.", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
            )
        return principal


def authenticated(request: Request, _: Annotated[object, Depends(_scheme)] = None) -> Principal:
    """The principal of this request, found by the middleware."""
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(authenticated)]
"""What a route writes to know who asks."""
