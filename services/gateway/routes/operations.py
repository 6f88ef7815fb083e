"""Whether it lives, whether it can serve, and its numbers. Open to everyone who reaches the port."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

import shared.requests
from services.gateway.gateway import Gateway
from services.gateway.room import no_room
from shared.readiness import Checks, NotReady

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(request: Request) -> JSONResponse:
    """Everything that is needed is there and the view has caught up; else 503 and what is missing."""
    missing = request.app.state.readiness.missing()
    body = {"status": "not ready" if missing else "ready", "missing": missing}
    return JSONResponse(body, 503 if missing else 200)


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Prometheus."""
    body, content_type = request.app.state.metrics.render()
    return Response(body, media_type=content_type)


def checks_of(here: Gateway) -> Checks:
    """What a gateway needs."""
    return {
        "database": here.view.jobs.ping,
        "disk": lambda: _none(no_room(here.settings)),
        "bus": here.bus.ping,
        "store": here.store.ping,
        "view": lambda: _none(here.view.ready()),
        "inference": lambda: _none(here.inference.ready()),
        "requests": partial(shared.requests.ping, here.settings.effective_requests_url),
    }


def _none(missing: str | None) -> None:
    if missing:
        raise NotReady(missing)
