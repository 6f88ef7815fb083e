"""`POST /predict`: the simple call of the system's first description, answered by a completion or a chat."""

from __future__ import annotations

from typing import Any

from starlette.types import Send

from services.gateway.inference.answers import read_whole
from services.gateway.inference.body import Body, decode_json, encode_json
from services.gateway.inference.errors import InvalidRequest
from services.gateway.inference.pending import Reply
from services.gateway.inference.relay import Relay
from shared.contracts.inference import Frame

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT_FIELDS = ("prompt", "input", "text")


def read_question(raw: bytes) -> tuple[str, Body]:
    """The path and the body to ask with.

    `model_id` (or `model`) names the model; `messages` asks a chat, and `prompt`, `input` or `text` a completion.
    `parameters`, and every other field, go to the engine as they are. Raises InvalidRequest.
    """
    question = decode_json(raw)
    if not isinstance(question, dict):
        raise InvalidRequest('The body must be a JSON object such as {"model_id": "my-model", "input": "Hello"}.')
    fields = dict(question)
    model = fields.pop("model_id", None) or fields.pop("model", None)
    if not model:
        raise InvalidRequest("The field 'model_id' is missing; GET /v1/models lists the models.", param="model_id")
    parameters = fields.pop("parameters", None) or {}
    if not isinstance(parameters, dict):
        raise InvalidRequest("'parameters' must be an object such as {\"max_tokens\": 64}.", param="parameters")
    texts = [fields.pop(name) for name in TEXT_FIELDS if name in fields]
    asked: dict[str, Any] = {**fields, **parameters, "model": model, "stream": False}
    if "messages" in asked:
        return CHAT, Body(encode_json(asked))
    if not texts:
        raise InvalidRequest("Nothing is asked: give 'input' (or 'prompt', 'text'), or 'messages'.", param="input")
    return COMPLETIONS, Body(encode_json({**asked, "prompt": texts[0]}))


def read_answer(raw: bytes) -> bytes:
    """The engine's answer, reduced: `output` is the text, or a list of them where there are several."""
    answer = decode_json(raw)
    choices = answer.get("choices", [])
    texts = [choice["message"]["content"] if "message" in choice else choice["text"] for choice in choices]
    model = answer.get("model")
    output = texts[0] if len(texts) == 1 else texts
    return encode_json({"model_id": model, "output": output, "usage": answer.get("usage")})


class Prediction(Relay):
    """A relay that translates both ways. The engine's errors pass as they are."""

    def read(self, raw: bytes) -> tuple[str, Body]:
        return read_question(raw)

    async def pass_on(self, reply: Reply, first: list[Frame], send: Send) -> int:
        status, data = await read_whole(reply, first)
        if status == 200:
            data = read_answer(data)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        headers.append((b"x-request-id", reply.id.encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})
        return status
