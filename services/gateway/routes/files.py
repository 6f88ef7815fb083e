"""OpenAI's files API. Every file is an artifact of kind `file`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from services.gateway import answers
from services.gateway.answers.files import file_object
from services.gateway.auth import Caller
from services.gateway.bodies import AfterFile, Asking
from services.gateway.errors import BadRequest, Conflict
from services.gateway.files import delete_file, upload
from services.gateway.gateway import Here
from services.gateway.objects import serve_file
from services.gateway.reading import StrictRoute
from services.gateway.uploads import LISTED_PURPOSES, PURPOSES, check_purpose
from services.gateway.view.paging import Order

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=StrictRoute)

_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(PURPOSES)},
    },
}


@router.post(
    "", openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}
)
async def create(request: Request, here: Here, caller: Caller) -> dict[str, Any]:
    """Upload a file: it is streamed, never held in memory. `processed` once the registry has it."""
    return file_object(await upload(here, caller, request))


@router.get("")
def list_files(
    here: Here,
    caller: Caller,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    after: AfterFile = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
) -> dict[str, Any]:
    """Uploaded files, newest first."""
    if purpose is not None:
        check_purpose(purpose, LISTED_PURPOSES)
    found = here.view.files.list(caller.tenant, purpose=purpose, after=after, limit=limit, order=order)
    return answers.listed([file_object(file) for file in found.items], found.has_more)


@router.get("/{file_id}")
def retrieve(file_id: str, here: Here, caller: Caller) -> dict[str, Any]:
    return file_object(here.view.files.get(caller.tenant, file_id))


@router.get("/{file_id}/content", response_class=StreamingResponse)
def content(
    file_id: str, here: Here, caller: Caller, asked_range: Annotated[str | None, Header(alias="range")] = None
) -> Response:
    """The bytes of a file; `Range` is understood."""
    file = here.view.files.get(caller.tenant, file_id)
    found = here.view.artifacts.find(caller.tenant, file_id)
    if found is None and file.status == "error":
        raise BadRequest(f"The file was not accepted: {file.status_details}", param="file_id", code="file_not_usable")
    if found is None:
        raise Conflict(
            "The file is still being registered; try again in a second.",
            param="file_id",
            code="file_not_processed",
            headers={"Retry-After": "1"},
        )
    return serve_file(here.store, found.manifest.files[0], file.filename, asked_range)


@router.delete("/{file_id}")
def delete(file_id: str, here: Here, caller: Caller, asked: Asking) -> dict[str, Any]:
    """Delete a file. Jobs that it was used in keep what they made of it."""
    if not here.submissions.earlier(asked):
        delete_file(here, asked, here.view.files.get(caller.tenant, file_id))
    return {"id": file_id, "object": "file", "deleted": True}
