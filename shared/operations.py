"""`/healthz`, `/readyz` and `/metrics` of a service that has no HTTP of its own; the gateway's routes say the same."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import make_wsgi_app

from shared.readiness import Checks, Readiness
from shared.settings import SettingsError

ANYWHERE = "0.0.0.0"  # in a container there is nobody else; on a host the port is 0 unless somebody sets it

_metrics = make_wsgi_app()


def serve_operations(port: int, checks: Checks) -> Callable[[], None]:
    """Answer on `port` until the returned function is called; nothing happens where the port is 0.

    Raises SettingsError where the port is taken.
    """
    if not port:
        return lambda: None
    try:
        server = make_server(ANYWHERE, port, operations(checks), _Server, _Quiet)
    except OSError as error:
        raise SettingsError(f"LLMOS_METRICS_PORT: nothing can be served on port {port}: {error.strerror}") from None
    threading.Thread(target=server.serve_forever, name="operations", daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop


def operations(checks: Checks) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    """The WSGI application."""
    readiness = Readiness(checks)

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return cast(Iterable[bytes], _metrics(environ, start))
            case "/healthz":
                return _json(start, "200 OK", {"status": "ok"})
            case "/readyz":
                missing = readiness.missing()
                body = {"status": "not ready" if missing else "ready", "missing": missing}
                return _json(start, "503 Service Unavailable" if missing else "200 OK", body)
        return _json(start, "404 Not Found", {"error": {"message": "There are /healthz, /readyz and /metrics here."}})

    return answer


def _json(start: StartResponse, status: str, body: Mapping[str, Any]) -> Iterable[bytes]:
    start(status, [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]


class _Server(ThreadingMixIn, WSGIServer):
    """A slow check holds up no other question."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Health checks come every few seconds; what is wrong is in the answer."""
