"""Events and logs as server-sent events. The cursor is the bus position, so that any gateway can go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from anyio import to_thread
from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent

from services.gateway import answers
from services.gateway.answers.jobs import record as as_json
from services.gateway.errors import BadRequest, NotFound
from services.gateway.gateway import Gateway
from services.gateway.view.paging import Page
from services.gateway.view.records import JobRecord
from shared.bus.port import Position
from shared.contracts.jobs import JobState

LOOK_EVERY_S = 1.0
"""A record may have come to another gateway, whose bell we do not hear."""
KEEP_ALIVE_S = 15
GRACE_LOOKS = 10
"""How often to look for the last words of a job that has ended."""
AT_ONCE = 200
LARGEST = 2**63 - 1

Read = Callable[[JobState, Position | None, int], Page[JobRecord]]


def wants_stream(request: Request, stream: bool | None) -> bool:
    """By `?stream=true`, or by what the client accepts."""
    return stream if stream is not None else "text/event-stream" in request.headers.get("accept", "")


def position(text: str | None, param: str = "after") -> Position | None:
    """The cursor that the client hands back. Raises BadRequest."""
    if not text:
        return None
    try:
        found = Position.parse(text)
    except ValueError:
        found = Position(-1, -1)
    if not (0 <= found.partition < 2**31 and 0 <= found.offset <= LARGEST):
        raise BadRequest(
            f"{param}: {text!r} is no cursor; take the 'id' of an item.", param=param, code="invalid_cursor"
        )
    return found


def begin(last_event_id: str | None, after: str | None) -> Position | None:
    """Where a stream goes on: behind the event that the client saw last, else behind `after`. Raises BadRequest."""
    return position(last_event_id, "Last-Event-ID") or position(after)


def page_of(found: Page[JobRecord], job_id: str, kind: str) -> dict[str, Any]:
    return answers.listed([as_json(item, job_id, kind) for item in found.items], found.has_more)


def stream(
    here: Gateway, tenant: str, state: JobState, read: Read, after: Position | None, kind: str
) -> EventSourceResponse:
    """What there is after the cursor, then what comes, until the job has ended and all was sent."""
    return EventSourceResponse(
        _events(here, tenant, state, read, after, kind), ping=KEEP_ALIVE_S, headers={"Cache-Control": "no-store"}
    )


async def _events(
    here: Gateway, tenant: str, state: JobState, read: Read, after: Position | None, kind: str
) -> AsyncIterator[ServerSentEvent]:
    job_id, looks = state.job_id, 0
    with here.view.bell.listening(job_id) as ear:
        while True:
            found = await to_thread.run_sync(read, state, after, AT_ONCE)
            for item in found.items:
                after = item.position
                yield ServerSentEvent(
                    orjson.dumps(as_json(item, job_id, kind)).decode(), event=item.type, id=str(item.position)
                )
            if found.has_more:
                continue
            if state.status.terminal:
                looks += 1
                if looks > GRACE_LOOKS or await to_thread.run_sync(_all_told, here, state, after, kind):
                    return
            await ear.wait(LOOK_EVERY_S)
            try:
                state = await to_thread.run_sync(here.view.jobs.get, tenant, job_id)
            except NotFound:  # purged while we told about it
                return


def _all_told(here: Gateway, state: JobState, after: Position | None, kind: str) -> bool:
    """Whether the event that ended the job is there and, in a stream of events, was sent or lies behind the cursor."""
    end = here.view.records.end(state)
    return end is not None and (kind != "job.event" or (after is not None and after >= end))
