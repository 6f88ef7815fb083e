"""Messages encode and decode themselves and refuse what is broken."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.inference import Cancel, Frame, FrameKind, decode_frames, decode_item, encode_frames, encode_item
from shared.contracts.jobs import CancelJob, LogLines, Progress
from shared.contracts.message import DecodeError, Message, UnknownType, decode, decode_envelope

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = {"id": TEXT, "tenant": TEXT, "traceparent": st.none() | TEXT}
FENCE = {"job_id": TEXT, "attempt": st.integers(0, 2**31), "rank": st.integers(0, 1000), "run_id": TEXT}
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


def wire(**changes: object) -> bytes:
    return orjson.dumps({**orjson.loads(CancelJob(job_id="job").encode()), **changes})


@given(st.builds(LogLines, at=MOMENTS, lines=st.lists(TEXT), **NAMES, **FENCE))
def test_what_is_encoded_comes_back_equal(message: Message) -> None:
    assert decode(message.encode()) == message


@given(
    st.builds(
        Progress,
        at=MOMENTS,
        step=st.integers(0, 2**53),
        metrics=st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False)),
        **NAMES,
        **FENCE,
    )
)
def test_numbers_come_back_to_the_last_bit(message: Message) -> None:
    assert decode(message.encode()) == message


@given(st.binary() | st.recursive(st.none() | st.booleans() | TEXT, st.lists).map(orjson.dumps))
def test_any_bytes_are_a_message_or_a_decode_error(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(raw)


def test_fields_that_are_not_known_here_are_ignored() -> None:
    message = decode(wire(newer="field", body={"job_id": "job", "newer": {"deep": 1}}))
    assert isinstance(message, CancelJob)
    assert message.job_id == "job"


def test_a_type_that_is_not_known_here_says_so_and_shows_its_envelope() -> None:
    with pytest.raises(UnknownType, match="FromTomorrow") as raised:
        decode(wire(type="FromTomorrow"))
    assert raised.value.envelope is not None
    assert raised.value.envelope.body == {"job_id": "job"}


def test_a_body_that_does_not_fit_names_the_field_and_shows_the_envelope() -> None:
    with pytest.raises(DecodeError, match="CancelJob does not fit its contract: job_id") as raised:
        decode(wire(body={}, tenant="acme"))
    assert raised.value.envelope is not None
    assert raised.value.envelope.tenant == "acme"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"{}", b"\xff", wire(at="yesterday"), wire(body=[])])
def test_without_an_envelope_there_is_only_a_reason(raw: bytes) -> None:
    with pytest.raises(DecodeError, match="not a message envelope: ") as raised:
        decode_envelope(raw)
    assert raised.value.envelope is None


def test_a_body_cannot_change_the_envelope() -> None:
    message = decode(wire(tenant="acme", body={"job_id": "job", "tenant": "other"}))
    assert message.tenant == "acme"


def test_messages_are_frozen_and_new_ones_have_ids_of_their_own() -> None:
    first, second = CancelJob(job_id="job"), CancelJob(job_id="job")
    assert first.id != second.id
    with pytest.raises(ValueError, match="frozen"):
        first.job_id = "other"  # type: ignore[misc]


@given(
    st.lists(
        st.builds(
            Frame,
            request=TEXT,
            attempt=st.integers(0, 9),
            seq=st.integers(0, 2**40),
            kind=st.sampled_from(FrameKind),
            data=st.binary(),
            replica=TEXT,
        )
    )
)
def test_frames_come_back_equal(frames: list[Frame]) -> None:
    assert decode_frames(encode_frames(frames)) == frames


@given(TEXT, st.integers(0, 9))
def test_cancels_come_back_equal(request: str, attempt: int) -> None:
    assert decode_item(encode_item(Cancel(request, attempt))) == Cancel(request, attempt)
