"""Models: whatever can be named to chat with or to fine-tune."""

from __future__ import annotations

from typing import Any

from services.gateway.answers import unix
from services.gateway.answers.deployments import status_of
from services.gateway.errors import NotFound
from services.gateway.view import View
from services.gateway.view.deployments import Deployment
from shared.contracts.artifacts import ArtifactKind, ArtifactVersionState

KINDS = [ArtifactKind.model.value, ArtifactKind.adapter.value]


def all_models(view: View, tenant: str) -> list[dict[str, Any]]:
    """Deployments by name, then every version of models and adapters, newest first."""
    aliases = view.artifacts.all_aliases(tenant)
    deployed = view.deployments.all(tenant)
    served = [_of_deployment(one, view) for one in deployed]
    versions = view.artifacts.of_kinds(tenant, KINDS)
    return served + [_of_version(state, aliases.get(state.name, {}), deployed) for state in versions]


def one_model(view: View, tenant: str, name: str) -> dict[str, Any]:
    """By deployment, version, alias or bare name. Raises NotFound."""
    deployed = view.deployments.all(tenant)
    found = view.artifacts.find(tenant, name)
    if found is not None and found.kind.value in KINDS:
        return _of_version(found, view.artifacts.aliases(tenant, found.name), deployed) | {"id": name}
    for one in deployed:
        if one.name == name:
            return _of_deployment(one, view)
    raise NotFound(
        f"There is no model {name!r}; GET /v1/models lists what there is.", param="model", code="model_not_found"
    )


def _of_version(state: ArtifactVersionState, aliases: dict[str, int], deployed: list[Deployment]) -> dict[str, Any]:
    return {
        "id": state.pin.ref,
        "object": "model",
        "created": unix(state.created_at),
        "owned_by": state.tenant,
        "kind": state.kind,
        "base_model": state.manifest.metadata.get("base_model"),
        "aliases": sorted(alias for alias, version in aliases.items() if version == state.version),
        "deployments": [one.name for one in deployed if state.pin in (one.spec.model, *one.spec.adapters)],
        "size_bytes": state.manifest.size_bytes,
    }


def _of_deployment(one: Deployment, view: View) -> dict[str, Any]:
    replicas = view.fleet.replicas(one.tenant, one.name)
    return {
        "id": one.name,
        "object": "model",
        "created": unix(one.created_at),
        "owned_by": one.tenant,
        "kind": "deployment",
        "base_model": one.spec.model.ref,
        "aliases": [],
        "deployments": [one.name],
        "status": status_of(one, replicas),
    }
