"""The routes of inference. Bodies are the engine's: nothing here knows their fields but `model`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from services.gateway.auth import Caller
from services.gateway.inference.dispatch import Dispatcher
from services.gateway.inference.predict import Prediction
from services.gateway.inference.relay import Relay

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
PREDICT = (
    "The simple call: `model_id` and `input` (or `prompt`, `text`: a completion; `messages`: a chat). Other fields, "
    "and those of `parameters`, go to the engine. Answers `model_id` (the version), `output` and `usage`."
)


def make_router(dispatcher: Dispatcher, timeout_s: float) -> APIRouter:
    """All routes of inference, over this dispatcher."""
    router = APIRouter(tags=["inference"])

    def pass_through(path: str, summary: str) -> None:
        async def ask(_: Request, caller: Caller) -> Response:
            return Relay(dispatcher, path, caller.tenant, timeout_s)

        router.add_api_route(
            path,
            ask,
            methods=["POST"],
            name=path.strip("/").replace("/", "_"),
            summary=summary,
            description=DESCRIPTION,
            response_class=Response,
            openapi_extra=_json_body("model"),
        )

    for path, summary in PASSED_THROUGH.items():
        pass_through(path, summary)

    @router.post(
        "/predict",
        summary="Ask in one call",
        description=PREDICT,
        response_class=Response,
        openapi_extra=_json_body("model_id"),
    )
    async def predict(_: Request, caller: Caller) -> Response:
        return Prediction(dispatcher, "/predict", caller.tenant, timeout_s)

    return router


def _json_body(required: str) -> dict[str, Any]:
    schema = {"type": "object", "required": [required], "properties": {required: {"type": "string"}}}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
