"""The artifacts that a request names, pinned to versions."""

from __future__ import annotations

from collections.abc import Mapping

from services.gateway.errors import BadRequest, Conflict, Forbidden, NotFound
from services.gateway.gateway import Gateway
from shared.contracts.artifacts import ArtifactKind, ArtifactPin
from shared.contracts.recipes import Recipe
from shared.settings import Settings


def pin_inputs(
    here: Gateway, tenant: str, recipe: Recipe, given: Mapping[str, str], names: Mapping[str, str] | None = None
) -> dict[str, ArtifactPin]:
    """Every input as an immutable version of a kind that the recipe takes. Errors name the field.

    `names` maps an input to the request's own word for it.
    """
    words = {name: (names or {}).get(name, f"inputs.{name}") for name in {*given, *recipe.inputs}}
    for name in given:
        if name not in recipe.inputs:
            takes = ", ".join(recipe.inputs) or "none"
            raise BadRequest(
                f"Unknown input {name!r}; this job type takes: {takes}.", param=words[name], code="unknown_input"
            )
    for name, declared in recipe.inputs.items():
        if declared.required and name not in given:
            raise BadRequest(f"The input {words[name]!r} is missing.", param=words[name], code="missing_input")
    return {name: pin(here, tenant, ref, recipe.inputs[name].kinds, words[name]) for name, ref in given.items()}


def pin(here: Gateway, tenant: str, ref: str, kinds: frozenset[ArtifactKind], param: str) -> ArtifactPin:
    """The version that a ref or a file id means. Raises NotFound, BadRequest (wrong kind), Conflict (not yet there)."""
    if file := here.view.files.find(tenant, ref):
        if file.status == "error":
            raise BadRequest(
                f"The file {ref!r} was not accepted: {file.status_details}", param=param, code="file_not_usable"
            )
        if file.status == "uploaded" and here.view.artifacts.find(tenant, ref) is None:
            raise Conflict(
                f"The file {ref!r} is still being registered; try again in a second.",
                param=param,
                code="file_not_processed",
                headers={"Retry-After": "1"},
            )
    found = here.view.artifacts.get(tenant, ref, param)
    if found.kind not in kinds:
        wanted = " or ".join(kind.one for kind in sorted(kinds))
        raise BadRequest(f"{ref!r} is {found.kind.one}; {wanted} is needed here.", param=param, code="wrong_kind")
    return found.pin


def still_there(here: Gateway, tenant: str, inputs: Mapping[str, ArtifactPin]) -> None:
    """Raises NotFound when a pinned version was deleted since."""
    for name, pinned in inputs.items():
        here.view.artifacts.get(tenant, pinned.ref, f"inputs.{name}")


def is_folder(source: str) -> bool:
    return source.startswith(("/", "./", "../", "~"))


def check_source(settings: Settings, source: str, param: str) -> None:
    """Whether jobs may take models from there. Raises Forbidden."""
    if is_folder(source):
        if not settings.allow_local_models:
            raise Forbidden(
                "Folders of the trainer's machine may not be used here (LLMOS_ALLOW_LOCAL_MODELS).",
                param=param,
                code="local_models_forbidden",
            )
    elif not settings.allow_hub:
        raise Forbidden("Models of the hub may not be used here (LLMOS_ALLOW_HUB).", param=param, code="hub_forbidden")


def no_such_model(name: str, param: str) -> NotFound:
    return NotFound(
        f"There is no model {name!r}: name an artifact (`name` or `name@version`), a hub id (`owner/name`) or a "
        "folder; GET /v1/models lists what there is.",
        param=param,
        code="model_not_found",
    )
