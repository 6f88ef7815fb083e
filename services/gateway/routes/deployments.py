"""Deployments: a model version served by replicas."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from services.gateway import answers
from services.gateway.answers import deployments as shapes
from services.gateway.auth import Caller
from services.gateway.bodies import AfterName, Asking, Limit
from services.gateway.deploying import WantedDeployment, WantedScale, deploy, scale, undeploy
from services.gateway.gateway import Gateway, Here
from services.gateway.reading import StrictRoute
from services.gateway.view.deployments import Deployment

router = APIRouter(prefix="/v1/deployments", tags=["deployments"], route_class=StrictRoute)


@router.post("", status_code=202)
def create(wanted: WantedDeployment, here: Here, caller: Caller, asked: Asking, response: Response) -> dict[str, Any]:
    """Serve a model, or change how it is served."""
    found = deploy(here, caller, asked, wanted)
    response.headers["Location"] = f"/v1/deployments/{found.name}"
    return _shape(here, found)


@router.get("")
def list_deployments(here: Here, caller: Caller, after: AfterName = None, limit: Limit = 100) -> dict[str, Any]:
    found = here.view.deployments.page(caller.tenant, after=after, limit=limit)
    return answers.listed([_shape(here, one) for one in found.items], found.has_more)


@router.get("/{name}")
def get(name: str, here: Here, caller: Caller) -> dict[str, Any]:
    """One deployment with its replicas."""
    return _shape(here, here.view.deployments.get(caller.tenant, name))


@router.patch("/{name}", status_code=202)
def patch(name: str, wanted: WantedScale, here: Here, caller: Caller, asked: Asking) -> dict[str, Any]:
    """Scale."""
    return _shape(here, scale(here, caller, asked, name, wanted.replicas))


@router.delete("/{name}", status_code=202)
def delete(name: str, here: Here, caller: Caller, asked: Asking) -> dict[str, Any]:
    """Stop serving; replicas finish what they are doing first."""
    undeploy(here, caller, asked, name)
    return {"id": name, "object": "deployment", "deleted": True}


def _shape(here: Gateway, found: Deployment) -> dict[str, Any]:
    return shapes.deployment(found, here.view.fleet.replicas(found.tenant, found.name))
