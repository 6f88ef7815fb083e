"""Artifacts: names, versions, aliases, lineage, downloads."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from services.gateway import answers
from services.gateway.answers import artifacts as shapes
from services.gateway.auth import Caller
from services.gateway.bodies import AfterName, Asking, Body, Limit
from services.gateway.errors import BadRequest, NotFound
from services.gateway.gateway import Here
from services.gateway.objects import begun, disposition, serve_file
from services.gateway.reading import StrictRoute
from services.gateway.registry import delete_artifact, lineage, no_alias, set_alias
from services.gateway.view.paging import Order
from shared.contracts.artifacts import ArtifactKind, SetAlias, check_alias, check_name
from shared.store.tar import tar_stream

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"], route_class=StrictRoute)


class WantedAlias(Body):
    version: int = Field(ge=1, lt=2**31, description="The version that the alias shall point to.")


@router.get("")
def list_artifacts(
    here: Here,
    caller: Caller,
    kind: Annotated[list[ArtifactKind] | None, Query(description="Only these kinds.")] = None,
    after: AfterName = None,
    limit: Limit = 100,
    order: Order = "asc",
) -> dict[str, Any]:
    """The names there are, each as its newest version is."""
    kinds = [one.value for one in kind or ()]
    found = here.view.artifacts.names(caller.tenant, kinds=kinds, after=after, limit=limit, order=order)
    aliases = here.view.artifacts.aliases
    data = [shapes.artifact(state, aliases(caller.tenant, state.name)) for state in found.items]
    return answers.listed(data, found.has_more)


@router.get("/{ref}")
def get(ref: str, here: Here, caller: Caller) -> dict[str, Any]:
    """`name`: the artifact; `name@3` or `name@alias`: that version with its files."""
    state = here.view.artifacts.get(caller.tenant, ref)
    aliases = here.view.artifacts.aliases(caller.tenant, state.name)
    return shapes.version(state, aliases) if "@" in ref else shapes.artifact(state, aliases)


@router.get("/{name}/versions")
def versions(name: str, here: Here, caller: Caller) -> dict[str, Any]:
    """All versions of a name, newest first."""
    found = here.view.artifacts.versions(caller.tenant, name)
    if not found:
        raise NotFound(f"There is no artifact {name!r}.", param="name", code="artifact_not_found")
    aliases = here.view.artifacts.aliases(caller.tenant, name)
    return answers.listed([shapes.version(state, aliases, with_files=False) for state in found], False)


@router.get("/{ref}/lineage")
def get_lineage(ref: str, here: Here, caller: Caller) -> dict[str, Any]:
    """What it was made from, and what was made from it."""
    state = here.view.artifacts.get(caller.tenant, ref)
    return {"id": state.pin.ref, "object": "artifact.lineage", **lineage(here, state)}


@router.get("/{name}/aliases")
def aliases(name: str, here: Here, caller: Caller) -> dict[str, int]:
    """Alias → version."""
    here.view.artifacts.get(caller.tenant, name, "name")
    return here.view.artifacts.aliases(caller.tenant, name)


@router.get("/{name}/aliases/{alias}")
def get_alias(name: str, alias: str, here: Here, caller: Caller) -> dict[str, Any]:
    """The version that an alias points to; `latest` is one."""
    here.view.artifacts.get(caller.tenant, name, "name")
    version = here.view.artifacts.aliases(caller.tenant, name).get(alias)
    if version is None:
        raise no_alias(name, alias)
    return {"object": "artifact.alias", "name": name, "alias": alias, "version": version}


@router.put("/{name}/aliases/{alias}")
async def put_alias(
    name: str, alias: str, wanted: WantedAlias, here: Here, caller: Caller, asked: Asking, response: Response
) -> dict[str, Any]:
    """Move an alias to a version."""
    command = _alias(caller.tenant, name, alias, wanted.version)
    await set_alias(here, caller, asked, command, response)
    return {"object": "artifact.alias", "name": name, "alias": alias, "version": wanted.version}


@router.delete("/{name}/aliases/{alias}")
async def delete_alias(
    name: str, alias: str, here: Here, caller: Caller, asked: Asking, response: Response
) -> dict[str, Any]:
    """Take an alias away."""
    await set_alias(here, caller, asked, _alias(caller.tenant, name, alias, None), response)
    return {"object": "artifact.alias", "name": name, "alias": alias, "version": None, "deleted": True}


@router.delete("/{ref}")
async def delete(ref: str, here: Here, caller: Caller, asked: Asking, response: Response) -> dict[str, Any]:
    """Delete a version (`name@3`) or all of a name."""
    await delete_artifact(here, caller, asked, ref, response)
    return {"id": ref, "object": "artifact", "deleted": True}


@router.get("/{ref}/download", response_class=StreamingResponse)
def download(ref: str, here: Here, caller: Caller) -> StreamingResponse:
    """A version as one .tar."""
    state = here.view.artifacts.get(caller.tenant, ref)
    chunks = begun(iter(tar_stream(here.store, state.manifest)))
    headers = {"Content-Disposition": disposition(f"{state.name}-{state.version}.tar")}
    return StreamingResponse(chunks, headers=headers, media_type="application/x-tar")


@router.get("/{ref}/files/{path:path}", response_class=StreamingResponse)
def download_file(
    ref: str, path: str, here: Here, caller: Caller, asked_range: Annotated[str | None, Header(alias="range")] = None
) -> Response:
    """One file of a version; `Range` is understood."""
    state = here.view.artifacts.get(caller.tenant, ref)
    file = next((file for file in state.manifest.files if file.path == path), None)
    if file is None:
        raise NotFound(f"{state.pin.ref!r} has no file {path!r}.", param="path", code="file_not_found")
    return serve_file(here.store, file, path.rsplit("/", 1)[-1], asked_range)


def _alias(tenant: str, name: str, alias: str, version: int | None) -> SetAlias:
    for param, check, value in (("name", check_name, name), ("alias", check_alias, alias)):
        try:
            check(value)
        except ValueError as error:
            raise BadRequest(str(error), param=param, code="invalid_value") from error
    return SetAlias(tenant=tenant, name=name, alias=alias, version=version)
