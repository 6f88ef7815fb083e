"""Multipart is understood however the network cuts it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.multipart import MultipartReader, PartBegins, PartEnds, Piece

DATA = b"line one\r\n--bo\r\n-- not the boundary\r\n\xff\x00"
BODY = (
    b'--bound\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    b'--bound\r\nContent-Disposition: form-data; name="file"; filename="a b.txt"\r\nContent-Type: text/plain\r\n\r\n'
    + DATA
    + b"\r\n--bound--\r\n"
)


@given(st.lists(st.integers(0, len(BODY)), max_size=12))
def test_every_way_of_cutting_the_body_gives_the_same_parts(cuts: list[int]) -> None:
    reader = MultipartReader("multipart/form-data; boundary=bound")
    edges = [0, *sorted(cuts), len(BODY)]
    pieces = [piece for start, end in pairwise(edges) for piece in reader.feed(BODY[start:end])]
    assert reader.finished
    assert together(pieces) == [
        (PartBegins("purpose", None), b"user_data"),
        (PartBegins("file", "a b.txt"), DATA),
    ]


def together(pieces: list[Piece]) -> list[tuple[PartBegins, bytes]]:
    parts: list[tuple[PartBegins, bytes]] = []
    begun, data = None, b""
    for piece in pieces:
        if isinstance(piece, PartBegins):
            begun, data = piece, b""
        elif isinstance(piece, PartEnds):
            assert begun is not None
            parts.append((begun, data))
        else:
            data += piece
    return parts
