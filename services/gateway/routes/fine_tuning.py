"""OpenAI's fine-tuning API over jobs of type `sft`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from services.gateway import answers
from services.gateway.answers import fine_tuning as shapes
from services.gateway.auth import Caller
from services.gateway.bodies import AfterCheckpoint, AfterEvent, AfterJob, Asking, Limit
from services.gateway.errors import NotFound
from services.gateway.gateway import Gateway, Here
from services.gateway.keys import Principal
from services.gateway.reading import StrictRoute
from services.gateway.steering import Steer, steer
from services.gateway.submissions import Asked
from services.gateway.tuning import WantedTuning, create_tuning
from shared.contracts.jobs import CancelJob, JobState, PauseJob, ResumeJob

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"], route_class=StrictRoute)

_METADATA = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "description": "Only jobs with these labels: `metadata[name]=value`.",
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}


@router.post("")
def create(wanted: WantedTuning, here: Here, caller: Caller, asked: Asking) -> dict[str, Any]:
    """Fine-tune a model on an uploaded file."""
    return shapes.fine_tuning_job(create_tuning(here, caller, asked, wanted), here.view)


@router.get("", openapi_extra={"parameters": [_METADATA]})
def list_jobs(
    request: Request, here: Here, caller: Caller, after: AfterJob = None, limit: Limit = 20
) -> dict[str, Any]:
    """Fine-tuning jobs, newest first; `metadata[name]=value` filters."""
    labels = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    found = here.view.jobs.list(caller.tenant, after=after, limit=limit, types=["sft"], labels=labels)
    return answers.listed([shapes.fine_tuning_job(state, here.view) for state in found.items], found.has_more)


@router.get("/{job_id}")
def retrieve(job_id: str, here: Here, caller: Caller) -> dict[str, Any]:
    return shapes.fine_tuning_job(_tuning(here, caller, job_id), here.view)


@router.post("/{job_id}/cancel")
def cancel(job_id: str, here: Here, caller: Caller, asked: Asking) -> dict[str, Any]:
    """Cancel a job that has not begun to publish."""
    return _steer(here, caller, asked, job_id, CancelJob)


@router.post("/{job_id}/pause")
def pause(job_id: str, here: Here, caller: Caller, asked: Asking) -> dict[str, Any]:
    return _steer(here, caller, asked, job_id, PauseJob)


@router.post("/{job_id}/resume")
def resume(job_id: str, here: Here, caller: Caller, asked: Asking) -> dict[str, Any]:
    return _steer(here, caller, asked, job_id, ResumeJob)


@router.get("/{job_id}/events")
def events(job_id: str, here: Here, caller: Caller, after: AfterEvent = None, limit: Limit = 20) -> dict[str, Any]:
    """What happened, newest first: messages, and metrics with their numbers."""
    state = _tuning(here, caller, job_id)
    newest_first = [shapes.event(record) for record in reversed(here.view.records.told(state, shapes.TOLD))]
    return _page(newest_first, after, limit)


@router.get("/{job_id}/checkpoints")
def checkpoints(
    job_id: str, here: Here, caller: Caller, after: AfterCheckpoint = None, limit: Limit = 10
) -> dict[str, Any]:
    """The checkpoints that are kept, newest first."""
    state = _tuning(here, caller, job_id)
    return _page([shapes.checkpoint(saved, state) for saved in reversed(state.checkpoints)], after, limit)


def _steer(here: Gateway, caller: Principal, asked: Asked, job_id: str, command: Steer) -> dict[str, Any]:
    _tuning(here, caller, job_id)
    return shapes.fine_tuning_job(steer(here, caller, asked, job_id, command), here.view)


def _tuning(here: Gateway, caller: Principal, job_id: str) -> JobState:
    state = here.view.jobs.get(caller.tenant, job_id)
    if state.spec.type != "sft":
        raise NotFound(
            f"{job_id!r} is a job of type {state.spec.type!r}, not fine-tuning; it is at /v1/jobs/{job_id}.",
            param="fine_tuning_job_id",
            code="job_not_found",
        )
    return state


def _page(items: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    ids = [item["id"] for item in items]
    rest = items[ids.index(after) + 1 :] if after in ids else items if after is None else []
    return answers.listed(rest[:limit], len(rest) > limit)
