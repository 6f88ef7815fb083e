"""What can go wrong for a client.

LLMOSError
├── NotConnected     nothing answers at that address, or nothing runs on that home
├── NoAddress        what was given as the address is none
├── NoKey            no API key was given or found
└── APIError         the server said no: `status`, `code`, `param`
    ├── NotFound     404
    └── Conflict     409
"""

from __future__ import annotations

import httpx


class LLMOSError(Exception):
    """The message is one sentence for a person."""


class NotConnected(LLMOSError):
    """Nothing answers at that address, or nothing runs on that home."""


class NoAddress(LLMOSError):
    """What was given as the gateway's address is none."""


class NoKey(LLMOSError):
    """No API key was given or found."""


class APIError(LLMOSError):
    """The server's answer was an error."""

    def __init__(self, message: str, status: int, code: str | None, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class NotFound(APIError):
    """There is no such thing."""


class Conflict(APIError):
    """It cannot be done in the state that things are in."""


def error_of(answer: httpx.Response) -> APIError:
    """The error that an answer of 4xx or 5xx tells; its body must have been read."""
    kind = {404: NotFound, 409: Conflict}.get(answer.status_code, APIError)
    try:
        error = answer.json()["error"]
        return kind(error["message"], answer.status_code, error.get("code"), error.get("param"))
    except (ValueError, KeyError, TypeError):
        return kind(f"{answer.status_code} {answer.reason_phrase}", answer.status_code, None, None)


def in_words(error: OSError) -> str:
    """What the machine refused, without its number: `/data/x.tar: No space left on device`."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason
