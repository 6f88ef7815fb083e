"""Changes to artifacts: commands to the registry, and a short wait for its answer."""

from __future__ import annotations

from collections.abc import Callable

from anyio import to_thread
from fastapi import Response

from services.gateway.errors import BadRequest, Conflict, NotFound
from services.gateway.gateway import Gateway
from services.gateway.keys import Principal
from services.gateway.submissions import Asked, Order
from services.gateway.waiting import shown
from shared.contracts.artifacts import (
    NAME_PATTERN,
    ArtifactVersionState,
    DeleteArtifact,
    SetAlias,
    artifact_key,
    split_ref,
)
from shared.contracts.topics import REGISTRY_COMMANDS

ANSWER_S = 5.0


async def set_alias(here: Gateway, caller: Principal, asked: Asked, command: SetAlias, response: Response) -> None:
    """Move or take away an alias. 202 when the registry has not answered in time; it will."""

    def check() -> None:
        if command.version is None and command.alias not in here.view.artifacts.aliases(caller.tenant, command.name):
            raise no_alias(command.name, command.alias)
        if command.version is not None:
            here.view.artifacts.get(caller.tenant, f"{command.name}@{command.version}", "version")

    def is_shown() -> bool:
        return here.view.artifacts.aliases(caller.tenant, command.name).get(command.alias) == command.version

    await _order(here, asked, command, check, is_shown, response)


def no_alias(name: str, alias: str) -> NotFound:
    return NotFound(f"{name!r} has no alias {alias!r}.", param="alias", code="alias_not_found")


async def delete_artifact(here: Gateway, caller: Principal, asked: Asked, ref: str, response: Response) -> None:
    """Delete a version, or a name with all its versions. What a deployment serves is not deleted."""
    name, version = _named(ref)

    def check() -> None:
        here.view.artifacts.get(caller.tenant, ref)
        _check_unused(here, caller, name, version)

    def is_shown() -> bool:
        return here.view.artifacts.find(caller.tenant, ref) is None

    command = DeleteArtifact(tenant=caller.tenant, name=name, version=version)
    await _order(here, asked, command, check, is_shown, response)


async def _order(
    here: Gateway,
    asked: Asked,
    command: SetAlias | DeleteArtifact,
    check: Callable[[], None],
    is_shown: Callable[[], bool],
    response: Response,
) -> None:
    """Check, commit, publish, wait. Raises Conflict with the registry's reason."""
    subject = artifact_key(command.tenant, command.name)
    order = Order(REGISTRY_COMMANDS, subject, command.name, command, until="answered")

    def accept() -> str:
        if earlier := here.submissions.earlier(asked):
            return earlier.command_id
        check()
        return here.submissions.accept(asked, order).command_id

    command_id = await to_thread.run_sync(accept)

    def outcome() -> str | None:
        """The reason of a rejection; empty once it is done and the view shows it; None until then."""
        done, rejected = here.submissions.outcome(command_id)
        return rejected or ("" if done and is_shown() else None)

    reason = await shown(here, command_id, outcome, ANSWER_S)
    if reason:
        raise Conflict(f"The registry refused: {reason}", code="registry_refused")
    if reason is None:
        response.status_code = 202


def _named(ref: str) -> tuple[str, int | None]:
    """A name, and the one version of it or all. Raises NotFound for what can be no name, BadRequest for an alias."""
    name, which = split_ref(ref)
    if not NAME_PATTERN.fullmatch(name):
        raise NotFound(f"There is no artifact {name!r}.", param="ref", code="artifact_not_found")
    if which is None:
        return name, None
    if not (which.isascii() and which.isdecimal()) or len(which) > 9:
        raise BadRequest(
            f"Name the version's number to delete one ({name}@3), or {name!r} to delete all; not an alias.",
            param="ref",
            code="invalid_value",
        )
    return name, int(which)


def _check_unused(here: Gateway, caller: Principal, name: str, version: int | None) -> None:
    for deployment in here.view.deployments.all(caller.tenant):
        spec = deployment.spec
        for pin in (spec.model, *([] if spec.auto_adapters else spec.adapters)):
            if pin.name == name and version in (None, pin.version) and not deployment.deleting:
                raise Conflict(
                    f"{pin.ref!r} is served by the deployment {deployment.name!r}; delete that first.",
                    param="ref",
                    code="in_use",
                )


def lineage(here: Gateway, state: ArtifactVersionState) -> dict[str, list[dict[str, object]]]:
    """What a version was made from and what was made from it, as far as either goes."""

    def parents(ref: str) -> list[str]:
        found = here.view.artifacts.find(state.tenant, ref)
        return found.parents if found else []

    def children(ref: str) -> list[str]:
        return here.view.artifacts.children(state.tenant, ref)

    def walk(step: Callable[[str], list[str]]) -> list[dict[str, object]]:
        found: dict[str, dict[str, object]] = {}
        waiting = [(ref, state.pin.ref) for ref in step(state.pin.ref)]
        while waiting:
            ref, seen_from = waiting.pop(0)
            if ref in found or ref == state.pin.ref:
                continue
            known = here.view.artifacts.find(state.tenant, ref) if "@" in ref else None
            found[ref] = {"ref": ref, "via": seen_from, "kind": known.kind if known else None, "exists": bool(known)}
            waiting += [(next_ref, ref) for next_ref in step(ref)]
        return list(found.values())

    return {"ancestors": walk(parents), "descendants": walk(children)}
