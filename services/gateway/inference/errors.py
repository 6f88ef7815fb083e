"""Why a request gets no answer of a model: the branch of the gateway's errors that inference adds.

ApiError
└── InferenceError
    ├── InvalidRequest       400  not JSON, no `model`, a deadline that is no number
    ├── ModelNotFound        404  nothing of that name is known
    ├── ModelNotDeployed     404  known, but no deployment serves it
    ├── NotOffered           404  the model's engine has no such route: embeddings of a chat model
    ├── Overloaded           429  the replicas that could take it refused
    ├── ReplicaFailed        502  the replica said that it could not finish
    ├── ModelNotReady        503  deployed, and not answering yet, or no more
    ├── QueueUnavailable     503  the queue that carries requests or replies is away
    ├── RepliesGone          503  the queue lost the answers under way
    ├── ReplicaLost          503  the replica died or fell silent
    ├── DeadlinePassed       504  the request's time is up
    └── ClientTooSlow        504  the client reads more slowly than the model writes
"""

from __future__ import annotations

import math
from typing import ClassVar

import orjson

from services.gateway.errors import ApiError


class InferenceError(ApiError):
    """Each has its status and its code; the message is a sentence for the client."""

    type = "service_unavailable"
    word: ClassVar[str]

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        headers = {} if retry_after_s is None else {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
        super().__init__(message, param=param, code=self.word, headers=headers)

    def event(self) -> bytes:
        """The same as the last event of a stream that had begun."""
        return b"data: " + orjson.dumps(self.envelope()) + b"\n\n"


class InvalidRequest(InferenceError):
    status, type, word = 400, "invalid_request_error", "invalid_request"


class ModelNotFound(InferenceError):
    status, type, word = 404, "invalid_request_error", "model_not_found"


class ModelNotDeployed(InferenceError):
    status, type, word = 404, "invalid_request_error", "model_not_deployed"


class NotOffered(InferenceError):
    status, type, word = 404, "invalid_request_error", "not_offered"


class Overloaded(InferenceError):
    status, type, word = 429, "rate_limit_error", "overloaded"


class ReplicaFailed(InferenceError):
    status, type, word = 502, "server_error", "replica_failed"


class ModelNotReady(InferenceError):
    status, word = 503, "model_not_ready"


class QueueUnavailable(InferenceError):
    status, word = 503, "queue_unavailable"


class RepliesGone(InferenceError):
    status, word = 503, "replies_lost"


class ReplicaLost(InferenceError):
    status, word = 503, "replica_lost"


class DeadlinePassed(InferenceError):
    status, type, word = 504, "timeout_error", "deadline_passed"


class ClientTooSlow(InferenceError):
    status, type, word = 504, "timeout_error", "client_too_slow"
