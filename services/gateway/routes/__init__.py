"""All routes but those of inference. Each file is one resource."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

from services.gateway.routes import artifacts, compat, deployments, files, fine_tuning, jobs, models, nodes, operations

DESCRIPTION = (
    "A self-hosted system for the whole life of a language model. OpenAI's contract for files, fine-tuning, models and "
    'inference; jobs, artifacts, deployments and nodes beside it. Errors are `{"error": {message, type, param, code}}`.'
)


def mount(app: FastAPI, *more: APIRouter) -> None:
    """As they are: `include_router` would build every route a second time, for a quarter of a second."""
    here = (jobs, files, fine_tuning, models, artifacts, deployments, nodes, compat, operations)
    for router in (*(module.router for module in here), *more):
        app.router.routes.extend(router.routes)
