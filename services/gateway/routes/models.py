"""OpenAI's models API over registered models, adapters and deployments."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from services.gateway import answers
from services.gateway.answers import models as shapes
from services.gateway.auth import Caller
from services.gateway.bodies import Asking
from services.gateway.gateway import Here
from services.gateway.reading import StrictRoute
from services.gateway.registry import delete_artifact

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=StrictRoute)


@router.get("")
def list_models(here: Here, caller: Caller) -> dict[str, Any]:
    """Everything that can be chatted with or fine-tuned."""
    return answers.listed(shapes.all_models(here.view, caller.tenant), False)


# Ids may hold a slash where a person names a hub model by mistake: that is a 404, not another route.
@router.get("/{model:path}")
def retrieve(model: str, here: Here, caller: Caller) -> dict[str, Any]:
    return shapes.one_model(here.view, caller.tenant, model)


@router.delete("/{model:path}")
async def delete(model: str, here: Here, caller: Caller, asked: Asking, response: Response) -> dict[str, Any]:
    """Delete a version (`name@3`) or all versions of a name."""
    await delete_artifact(here, caller, asked, model, response)
    return {"id": model, "object": "model", "deleted": True}
