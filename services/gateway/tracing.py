"""Where traces begin, or where a client's go on."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.tracing import span

HEADER = b"traceparent"
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds, for ever."""


class Traced:
    """ASGI middleware: a span for each request. Who reads the request's `traceparent` behind it finds that span's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET:
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        came_with = Headers(scope=scope).get("traceparent")
        with span(method, came_with, kind="server", begins=True) as work:
            work.set(**{"http.request.method": method, "url.path": scope["path"]})

            async def sent(message: Message) -> None:
                if message["type"] == "http.response.start":
                    work.set(**{"http.response.status_code": message["status"]})
                    if message["status"] >= 500:
                        work.fail(f"status {message['status']}")
                await send(message)

            try:
                await self._app(_with_trace(scope, work.traceparent), receive, sent)
            finally:
                if route := getattr(scope.get("route"), "path", None):
                    work.rename(f"{method} {route}")
                    work.set(**{"http.route": route})


def _with_trace(scope: Scope, traceparent: str | None) -> Scope:
    """The same scope, which routes write to, with the header replaced."""
    others = [(name, value) for name, value in scope["headers"] if name != HEADER]
    scope["headers"] = [*others, (HEADER, (traceparent or "").encode())]
    return scope
