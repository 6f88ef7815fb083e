"""The routes of the system's first description. `POST /predict` is with inference."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from services.gateway.answers import deployments as deployment_shapes
from services.gateway.answers import models as shapes
from services.gateway.auth import Caller
from services.gateway.bodies import Asking, Body
from services.gateway.deploying import WantedDeployment, deploy
from services.gateway.gateway import Here
from services.gateway.reading import StrictRoute
from shared.contracts.artifacts import ArtifactName

router = APIRouter(prefix="/api/models", tags=["compatibility"], route_class=StrictRoute)


class WantedServing(Body):
    """How to serve it; everything has a default."""

    name: ArtifactName | None = None
    replicas: int = Field(1, ge=0, le=1024)
    engine_args: dict[str, Any] = Field(default_factory=dict)


@router.get("")
def list_models(here: Here, caller: Caller) -> dict[str, Any]:
    return {"models": shapes.all_models(here.view, caller.tenant)}


@router.get("/{model_id}")
def get(model_id: str, here: Here, caller: Caller) -> dict[str, Any]:
    return shapes.one_model(here.view, caller.tenant, model_id)


@router.post("/{model_id}/deploy", status_code=202)
def deploy_model(
    model_id: str, here: Here, caller: Caller, asked: Asking, wanted: WantedServing | None = None
) -> dict[str, Any]:
    """Serve a model under its own name."""
    serving = wanted or WantedServing()
    found = deploy(here, caller, asked, WantedDeployment(model=model_id, **serving.model_dump()))
    return deployment_shapes.deployment(found, here.view.fleet.replicas(found.tenant, found.name))
