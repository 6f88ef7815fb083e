"""The client's body: read whole, understood only as far as `model`, and passed on with nothing else changed."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.types import Receive

from services.gateway.inference.errors import InvalidRequest

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_value = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


class ClientLeft(Exception):
    """The client hung up: nobody waits for the answer."""


async def read_body(receive: Receive) -> bytes:
    """All of the request's body; the middleware bounds it. Raises ClientLeft."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Body:
    """A JSON object whose fields stay as the client wrote them, so that no number or unknown one changes."""

    def __init__(self, raw: bytes) -> None:
        """Raises InvalidRequest for what is no JSON object, and for a `model` that is no name."""
        try:
            raw.decode()  # fields are not looked into, and the engine would refuse it in other words
            self._fields = _fields.decode(raw)
        except msgspec.ValidationError as error:
            raise InvalidRequest('The body must be a JSON object such as {"model": "my-model", …}.') from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _not_json(error) from error
        self.model = self._read_model()

    def with_model(self, ref: str) -> bytes:
        """The bytes to send: `model` replaced, all else as it came."""
        self._fields["model"] = msgspec.Raw(_encoder.encode(ref))
        return _encoder.encode(self._fields)

    def _read_model(self) -> str:
        if "model" not in self._fields:
            raise InvalidRequest("The field 'model' is missing; GET /v1/models lists those there are.", param="model")
        model = decode_json(bytes(self._fields["model"]))
        if not isinstance(model, str) or not model:
            raise InvalidRequest('\'model\' must be a name such as "my-model" or "my-model@3".', param="model")
        return model


def decode_json(raw: bytes) -> Any:
    """Any JSON value. Raises InvalidRequest, which says where it breaks."""
    try:
        return _value.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(error) from error


def encode_json(value: Any) -> bytes:
    return _encoder.encode(value)


def _not_json(error: Exception) -> InvalidRequest:
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest(f"The body is not valid UTF-8: byte {error.start + 1} cannot be read.")
    return InvalidRequest(f"The body is not valid JSON: {str(error).removeprefix('JSON is malformed: ')}.")
