"""Jobs of any type: submit, watch, steer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from services.gateway import answers
from services.gateway.answers import jobs as shapes
from services.gateway.auth import Caller
from services.gateway.bodies import After, AfterJob, Asking, Limit
from services.gateway.errors import BadRequest
from services.gateway.gateway import Here
from services.gateway.reading import StrictRoute
from services.gateway.steering import steer
from services.gateway.streams import begin, page_of, position, stream, wants_stream
from services.gateway.submit import WantedJob, retry_job, submit_job
from services.gateway.view.paging import Order
from shared.contracts.jobs import CancelJob, JobStatus, PauseJob, ResumeJob
from shared.contracts.recipes import RECIPES

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

LastEventId = Annotated[str | None, Header(max_length=64, description="Go on behind this event.")]


@router.post("", status_code=202)
def submit(wanted: WantedJob, here: Here, caller: Caller, asked: Asking, response: Response) -> dict[str, Any]:
    """Submit a job. It is durable when this answers; the same `Idempotency-Key` and body give the same job."""
    state = submit_job(here, caller, asked, wanted)
    response.headers["Location"] = f"/v1/jobs/{state.job_id}"
    return shapes.job(state, here.view)


@router.get("")
def list_jobs(
    here: Here,
    caller: Caller,
    type: Annotated[list[str] | None, Query(description="Only these types.")] = None,  # noqa: A002 - the query's word
    status: Annotated[list[JobStatus] | None, Query(description="Only these statuses.")] = None,
    label: Annotated[list[str] | None, Query(description="Only jobs with this label: `name=value`.")] = None,
    after: AfterJob = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> dict[str, Any]:
    """Jobs, newest first."""
    for wanted in type or ():
        if wanted not in RECIPES:
            raise BadRequest(
                f"Unknown job type {wanted!r}; there are: {', '.join(RECIPES)}.", param="type", code="unknown_type"
            )
    found = here.view.jobs.list(
        caller.tenant,
        after=after,
        limit=limit,
        order=order,
        types=type or (),
        statuses=[one.value for one in status or ()],
        labels=_labels(label or []),
    )
    return answers.listed([shapes.brief_job(state) for state in found.items], found.has_more)


@router.get("/{job_id}")
def get(job_id: str, here: Here, caller: Caller) -> dict[str, Any]:
    """One job: status, place in the queue, progress, attempts with their reasons."""
    return shapes.job(here.view.jobs.get(caller.tenant, job_id), here.view)


@router.post("/{job_id}/cancel", status_code=202)
def cancel(job_id: str, here: Here, caller: Caller, asked: Asking) -> dict[str, Any]:
    """Cancel a job. From `publishing` on it is too late: 409."""
    return shapes.job(steer(here, caller, asked, job_id, CancelJob), here.view)


@router.post("/{job_id}/pause", status_code=202)
def pause(job_id: str, here: Here, caller: Caller, asked: Asking) -> dict[str, Any]:
    """Pause a job; it keeps its newest checkpoint."""
    return shapes.job(steer(here, caller, asked, job_id, PauseJob), here.view)


@router.post("/{job_id}/resume", status_code=202)
def resume(job_id: str, here: Here, caller: Caller, asked: Asking) -> dict[str, Any]:
    """Queue a paused job again; it goes on from its newest checkpoint."""
    return shapes.job(steer(here, caller, asked, job_id, ResumeJob), here.view)


@router.post("/{job_id}/retry", status_code=202)
def retry(job_id: str, here: Here, caller: Caller, asked: Asking) -> dict[str, Any]:
    """A new job like this one, which has ended."""
    return shapes.job(retry_job(here, caller, asked, job_id), here.view)


@router.get("/{job_id}/events", response_model=None)
def events(
    job_id: str,
    request: Request,
    here: Here,
    caller: Caller,
    after: After = None,
    limit: Limit = 100,
    stream_: Annotated[bool | None, Query(alias="stream")] = None,
    last_event_id: LastEventId = None,
) -> Response | dict[str, Any]:
    """What happened to a job, oldest first: a page, or server-sent events until the job has ended."""
    state = here.view.jobs.get(caller.tenant, job_id)
    read = here.view.records.events
    if wants_stream(request, stream_):
        return stream(here, caller.tenant, state, read, begin(last_event_id, after), "job.event")
    return page_of(read(state, position(after), limit), job_id, "job.event")


@router.get("/{job_id}/logs", response_model=None)
def logs(
    job_id: str,
    request: Request,
    here: Here,
    caller: Caller,
    after: After = None,
    limit: Limit = 100,
    stream_: Annotated[bool | None, Query(alias="stream")] = None,
    last_event_id: LastEventId = None,
) -> Response | dict[str, Any]:
    """What a job printed, oldest first: a page, or server-sent events until the job has ended."""
    state = here.view.jobs.get(caller.tenant, job_id)
    read = here.view.records.logs
    if wants_stream(request, stream_):
        return stream(here, caller.tenant, state, read, begin(last_event_id, after), "job.log")
    return page_of(read(state, position(after), limit), job_id, "job.log")


@router.get("/{job_id}/metrics")
def metrics(job_id: str, here: Here, caller: Caller, after: After = None, limit: Limit = 1000) -> dict[str, Any]:
    """The series of progress reports: step, tokens, loss and what else the recipe measures."""
    state = here.view.jobs.get(caller.tenant, job_id)
    found = here.view.records.progress(state, position(after), limit)
    return answers.listed([shapes.point(item) for item in found.items], found.has_more)


def _labels(given: list[str]) -> dict[str, str]:
    labels = {}
    for text in given:
        name, is_there, value = text.partition("=")
        if not is_there or not name:
            raise BadRequest(f"label: {text!r} is not of the form name=value.", param="label", code="invalid_value")
        labels[name] = value
    return labels
