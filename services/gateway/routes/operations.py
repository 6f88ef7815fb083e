"""Whether it lives, whether it can serve, and its numbers. Open to everyone who reaches the port."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError

from services.gateway.gateway import Gateway, Here
from services.gateway.room import no_room
from shared.bus.port import BusError
from shared.store.port import StoreError

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(here: Here) -> JSONResponse:
    """Everything that is needed is there and the view has caught up; else 503 and what is missing."""
    missing = {name: reason for name, check in _checks(here).items() if (reason := check())}
    body = {"status": "not ready" if missing else "ready", "missing": missing}
    return JSONResponse(body, 503 if missing else 200)


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Prometheus."""
    body, content_type = request.app.state.metrics.render()
    return Response(body, media_type=content_type)


def _checks(here: Gateway) -> dict[str, Callable[[], str | None]]:
    return {
        "database": lambda: _why_not(here.view.jobs.ping),
        "disk": lambda: no_room(here.settings),
        "bus": lambda: _why_not(here.bus.ping),
        "store": lambda: _why_not(here.store.ping),
        "view": here.view.ready,
        "inference": here.inference.ready,
    }


def _why_not(ping: Callable[[], None]) -> str | None:
    try:
        ping()
    except (BusError, StoreError, SQLAlchemyError) as error:
        return str(error).splitlines()[0]
    return None
