"""What the `openai` package raises, as one sentence and an exit code."""

from __future__ import annotations

import sys

from llmos.cli.output import STATUS_CODES

NO_TEMPLATE = "chat template"
"""What the engine's own message of many lines speaks of, where a model only completes text."""


def sentence_of(error: Exception) -> tuple[str, int] | None:
    """The sentence and the exit code of an `openai` error; None for any other exception."""
    openai = sys.modules.get("openai")  # its import takes a second: who has not imported it cannot meet its errors
    if openai is None or not isinstance(error, openai.OpenAIError):
        return None
    if isinstance(error, openai.APITimeoutError):
        return f"{error.request.url.host} did not answer in time; try again", 4
    if isinstance(error, openai.APIConnectionError):
        url = error.request.url
        return f"nothing answers at {url.scheme}://{url.netloc.decode()}; is it up? `llmos up` starts it", 4
    body = getattr(error, "body", None)
    told = body.get("message") if isinstance(body, dict) else None
    sentence = str(told or error)
    if NO_TEMPLATE in sentence.lower().replace("_", " "):
        sentence = "this model has no chat template, so it cannot chat: `llmos complete MODEL TEXT` goes on with a text"
    return sentence, STATUS_CODES.get(getattr(error, "status_code", 0), 1)
