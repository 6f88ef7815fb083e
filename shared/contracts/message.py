"""The envelope every bus message travels in, and the base class of all messages.

Wire form, UTF-8 JSON::

    {"id": …, "type": "SubmitJob", "schema_version": 1, "at": …, "tenant": …, "traceparent": …, "body": {…}}

The envelope decodes apart from the body, so that a consumer knows whose message it could not read.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Self
from uuid import uuid4

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_MESSAGE_BYTES = 512 * 2**10
"""Of what a sender may put on the bus. What is larger goes into the object store; the message says where."""
ENVELOPE_FIELDS = frozenset({"id", "at", "tenant", "traceparent"})


class Value(BaseModel):
    """A frozen value on the wire. Unknown fields are ignored, so that producers may be newer than consumers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def changed(self, **changes: object) -> Self:
        """A copy with these fields replaced. Nothing is validated: the caller passes values of the right type."""
        return self.model_copy(update=changes)


class DecodeError(Exception):
    """The bytes are no message: not JSON, no envelope, or a body that does not fit its type.

    `envelope` is there whenever the outer part could be read.
    """

    def __init__(self, reason: str, envelope: Envelope | None = None) -> None:
        super().__init__(reason)
        self.envelope = envelope


class UnknownType(DecodeError):
    """A well-formed envelope of a type that this process does not know: it was sent by a newer version."""


class Envelope(Value):
    """Everything about a message but its body."""

    id: str
    type: str
    schema_version: int = 1
    at: datetime
    tenant: str = "default"
    traceparent: str | None = None
    body: dict[str, Any] = Field(default_factory=dict)


class Message(Value):
    """A value that travels on the bus. Subclasses add their fields; the class name is the wire `type`."""

    schema_version: ClassVar[int] = 1
    by_type: ClassVar[dict[str, type[Message]]] = {}

    id: str = Field(default_factory=lambda: uuid4().hex)
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    tenant: str = "default"
    traceparent: str | None = None

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        Message.by_type[cls.__name__] = cls

    def encode(self) -> bytes:
        """This message as wire bytes."""
        fields = self.model_dump(mode="json")
        envelope = {name: fields.pop(name) for name in ("id", "at", "tenant", "traceparent")}
        head = {"id": envelope["id"], "type": type(self).__name__, "schema_version": self.schema_version}
        return orjson.dumps({**head, **envelope, "body": fields})


class AsWritten(Message):
    """Wire bytes to publish as they are: what a newer version wrote there is not lost. No type of its own."""

    raw: bytes

    def encode(self) -> bytes:
        return self.raw


del Message.by_type[AsWritten.__name__]


def decode_envelope(raw: bytes) -> Envelope:
    """The outer part of wire bytes. Raises DecodeError."""
    try:
        return Envelope.model_validate(orjson.loads(raw))
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise DecodeError(f"not a message envelope: {first_line(error)}") from error


def decode(raw: bytes) -> Message:
    """The message in wire bytes. Raises UnknownType for a type that is not known here, DecodeError for the rest."""
    envelope = decode_envelope(raw)
    kind = Message.by_type.get(envelope.type)
    if kind is None:
        raise UnknownType(f"unknown message type {envelope.type!r}", envelope)
    head = {name: getattr(envelope, name) for name in ENVELOPE_FIELDS}
    try:
        return kind.model_validate({**envelope.body, **head})
    except ValidationError as error:
        raise DecodeError(f"{envelope.type} does not fit its contract: {first_line(error)}", envelope) from error


def first_line(error: Exception) -> str:
    """The one sentence of an error that a person can use, pydantic's field paths included."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    return str(error).splitlines()[0] if str(error) else type(error).__name__
