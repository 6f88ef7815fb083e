"""The routes of inference. Bodies are the engine's: nothing here knows their fields but `model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter, Response

from services.gateway.auth import Caller
from services.gateway.inference.dispatch import Dispatcher
from services.gateway.inference.predict import Prediction
from services.gateway.inference.relay import Relay

PREDICT = "/predict"
PASSED_THROUGH = {
    "/v1/chat/completions": "Answer a chat",
    "/v1/completions": "Complete a text",
    "/v1/responses": "Answer in the form of OpenAI's responses",
    "/v1/embeddings": "Embed texts",
    "/v1/rerank": "Order documents by how well they answer",
    "/v1/score": "Score pairs of texts",
    "/tokenize": "Turn text into tokens",
    "/detokenize": "Turn tokens into text",
}
DESCRIPTION = (
    "Every field but `model` goes to the engine (vLLM) as it is. `model` is a deployment, `name`, `name@3`, or "
    "`name@alias`. The header `x-request-timeout-ms` sets a deadline."
)
PREDICT_DESCRIPTION = (
    "The simple call: `model_id` and `input` (or `prompt`, `text`: a completion; `messages`: a chat). Other fields, "
    "and those of `parameters`, go to the engine. Answers `model_id` (the version), `output` and `usage`."
)


Answering = Mapping[str, Callable[[str], Response]]
"""Path → what answers a request of a tenant there."""


def make_answering(dispatcher: Dispatcher, timeout_s: float) -> Answering:
    """What answers, path by path, over this dispatcher."""

    def relay(path: str, tenant: str) -> Response:
        return Relay(dispatcher, path, tenant, timeout_s)

    def prediction(tenant: str) -> Response:
        return Prediction(dispatcher, PREDICT, tenant, timeout_s)

    return {**{path: partial(relay, path) for path in PASSED_THROUGH}, PREDICT: prediction}


def make_router(answering: Answering) -> APIRouter:
    """The same as routes, with their documentation."""
    router = APIRouter(tags=["inference"])
    for path, summary in PASSED_THROUGH.items():
        _add_route(router, path, answering, summary, DESCRIPTION, _json_body("model"))
    _add_route(router, PREDICT, answering, "Ask in one call", PREDICT_DESCRIPTION, _json_body("model_id"))
    return router


def _add_route(
    router: APIRouter, path: str, answering: Answering, summary: str, description: str, body: dict[str, Any]
) -> None:
    async def answer(caller: Caller) -> Response:
        return answering[path](caller.tenant)

    router.add_api_route(
        path,
        answer,
        methods=["POST"],
        name=path.strip("/").replace("/", "_"),
        summary=summary,
        description=description,
        response_class=Response,
        openapi_extra=body,
    )


def _json_body(required: str) -> dict[str, Any]:
    schema = {"type": "object", "required": [required], "properties": {required: {"type": "string"}}}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
