"""multipart/form-data as it comes in: part by part, piece by piece, nothing kept."""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from services.gateway.errors import BadRequest, UnsupportedMedia


@dataclass(frozen=True)
class PartBegins:
    """`filename` is None for a plain field."""

    name: str
    filename: str | None


@dataclass(frozen=True)
class PartEnds:
    pass


Piece = PartBegins | bytes | PartEnds


class MultipartReader:
    """Feed it the body; it gives back what that holds. Raises BadRequest when it is no multipart."""

    def __init__(self, content_type: str | None) -> None:
        kind, options = parse_options_header(content_type or "")
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise UnsupportedMedia(
                "Send the file as multipart/form-data with the fields 'purpose' and 'file'.", code="not_multipart"
            )
        self.finished = False
        self._pieces: list[Piece] = []
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._disposition = ""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": lambda data, start, end: self._pieces.append(bytes(data[start:end])),
                "on_part_end": lambda: self._pieces.append(PartEnds()),
                "on_end": self._on_end,
            },
        )

    def feed(self, data: bytes) -> list[Piece]:
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise BadRequest(
                f"The body is not valid multipart/form-data: {error}.", code="invalid_multipart"
            ) from error
        pieces, self._pieces = self._pieces, []
        return pieces

    def _on_part_begin(self) -> None:
        self._disposition = ""
        self._header = (bytearray(), bytearray())

    def _on_header_end(self) -> None:
        if bytes(self._header[0]).lower() == b"content-disposition":
            self._disposition = self._header[1].decode("latin-1")
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if name is None:
            raise BadRequest("A part of the body has no name.", code="invalid_multipart")
        filename = options.get(b"filename")
        self._pieces.append(PartBegins(_text(name), None if filename is None else _text(filename)))

    def _on_end(self) -> None:
        self.finished = True


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
