"""What the `openai` package raises, as one sentence and an exit code."""

from __future__ import annotations

import sys

EXIT_CODES = {404: 3, 409: 5}


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
    return str(told or error), EXIT_CODES.get(getattr(error, "status_code", 0), 1)
