"""Why an S3 store does not answer, as a sentence that names the server: the library's own words are for its makers."""

from __future__ import annotations

from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

MOST_CHARS = 200
WHY: tuple[tuple[type[HTTPError], str], ...] = (
    (NameResolutionError, "its name is not known"),
    (NewConnectionError, "it takes no connection"),
    (ConnectTimeoutError, "it takes no connection in time"),
    (ReadTimeoutError, "it takes requests and says nothing"),
    (ProtocolError, "the connection broke off"),
)


def silence(endpoint: str, what: str, error: Exception) -> str:
    """The sentence for what the client raised when it asked about `what`."""
    reason = error.reason or error if isinstance(error, MaxRetryError) else error
    why = next((why for kind, why in WHY if isinstance(reason, kind)), "")
    if not why:
        words = str(reason).strip().partition("\n")[0] or type(reason).__name__
        why = f"{'TLS fails: ' if isinstance(reason, SSLError) else ''}{words}"[:MOST_CHARS]
    return f"the S3 store at {endpoint} does not answer about {what}: {why}"
