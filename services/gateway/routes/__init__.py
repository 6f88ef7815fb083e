"""All routes but those of inference. Each file is one resource."""

from __future__ import annotations

from fastapi import FastAPI

from services.gateway.routes import artifacts, compat, deployments, files, fine_tuning, jobs, models, nodes, operations

DESCRIPTION = (
    "A self-hosted system for the whole life of a language model. OpenAI's contract for files, fine-tuning, models and "
    'inference; jobs, artifacts, deployments and nodes beside it. Errors are `{"error": {message, type, param, code}}`.'
)


def mount(app: FastAPI) -> None:
    for module in (jobs, files, fine_tuning, models, artifacts, deployments, nodes, compat, operations):
        app.include_router(module.router)
