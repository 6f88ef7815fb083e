"""The short way to a replica, past the routing of everything else."""

from __future__ import annotations

from types import SimpleNamespace

from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.errors import ApiError
from services.gateway.inference.routes import Answering


class Shortcut:
    """ASGI middleware: the hot paths go straight to their answer.

    FastAPI's routing, exit stacks and dependencies took a quarter of the gateway's time per streamed request; the
    routes stay declared for /docs and answer in the same way. The principal was found by the middleware around this.
    """

    def __init__(self, app: ASGIApp, answering: Answering) -> None:
        self._app = app
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hot = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._answering
        if not hot:
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        scope["route"] = SimpleNamespace(path=path)
        try:
            await self._answering[path](scope["state"]["principal"].tenant)(scope, receive, send)
        except ApiError as error:
            await error.response()(scope, receive, send)
