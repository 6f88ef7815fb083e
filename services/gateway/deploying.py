"""Deployments: create, scale, delete."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from services.gateway.bodies import Body
from services.gateway.errors import BadRequest, Conflict
from services.gateway.gateway import Gateway
from services.gateway.inputs import pin
from services.gateway.keys import Principal
from services.gateway.submissions import Asked, Order
from services.gateway.submit import WantedResources
from services.gateway.view.deployments import Deployment
from shared.contracts.artifacts import ArtifactKind, ArtifactName, ArtifactPin
from shared.contracts.deployments import Deploy, DeploymentSpec, Scale, Undeploy, deployment_key
from shared.contracts.jobs import Resources
from shared.contracts.topics import DEPLOYMENTS_COMMANDS

MODELS = frozenset({ArtifactKind.model})
ADAPTERS = frozenset({ArtifactKind.adapter})


class WantedDeployment(Body):
    """What to serve. A name that is there already is changed to this."""

    name: ArtifactName | None = Field(None, description="By default the model's name.")
    model: str = Field(description="A model artifact: `name`, `name@3` or `name@alias`. Pinned now.")
    replicas: int = Field(1, ge=0, le=1024)
    adapters: list[str] = Field(default_factory=list, max_length=256)
    auto_adapters: bool = Field(True, description="Adopt the registered adapters of this model version.")
    max_loras: int = Field(4, ge=0, le=256)
    max_lora_rank: int = Field(16, ge=1, le=512, description="Largest rank of an adapter; more room is slower.")
    engine: str = Field("vllm", min_length=1, max_length=64)
    engine_args: dict[str, Any] = Field(default_factory=dict, description="Handed to the engine as they are.")
    max_queue: int = Field(256, ge=1, le=2**31 - 1, description="Requests that a replica holds at once.")
    resources: WantedResources = WantedResources()


class WantedScale(Body):
    replicas: int = Field(ge=0, le=1024)


def deploy(here: Gateway, caller: Principal, asked: Asked, wanted: WantedDeployment) -> Deployment:
    """Pin, commit, publish. The deployment is shown from then on."""
    if earlier := here.submissions.earlier(asked):
        return here.view.deployments.get(caller.tenant, earlier.resource_id)
    spec = _spec(here, caller, wanted)
    name = wanted.name or spec.model.name
    _order(here, asked, name, Deploy(tenant=caller.tenant, name=name, spec=spec), spec)
    return here.view.deployments.get(caller.tenant, name)


def scale(here: Gateway, caller: Principal, asked: Asked, name: str, replicas: int) -> Deployment:
    """Change how many replicas there are."""
    deployment = here.view.deployments.get(caller.tenant, name)
    if here.submissions.earlier(asked):
        return deployment
    if deployment.deleting:
        raise Conflict(f"{name!r} is being deleted.", param="name", code="being_deleted")
    command = Scale(tenant=caller.tenant, name=name, replicas=replicas)
    _order(here, asked, name, command, deployment.spec.changed(replicas=replicas))
    return here.view.deployments.get(caller.tenant, name)


def undeploy(here: Gateway, caller: Principal, asked: Asked, name: str) -> None:
    """Stop it all."""
    if here.submissions.earlier(asked):
        return
    here.view.deployments.get(caller.tenant, name)
    command = Undeploy(tenant=caller.tenant, name=name)
    subject = deployment_key(caller.tenant, name)
    order = Order(DEPLOYMENTS_COMMANDS, subject, name, command, until="published")
    here.submissions.accept(asked, order, lambda sql: here.view.deployments.mark_deleting(sql, caller.tenant, name))


def _order(here: Gateway, asked: Asked, name: str, command: Deploy | Scale, spec: DeploymentSpec) -> None:
    order = Order(DEPLOYMENTS_COMMANDS, deployment_key(asked.tenant, name), name, command, until="published")
    here.submissions.accept(asked, order, lambda sql: here.view.deployments.want(sql, asked.tenant, name, spec))


def _spec(here: Gateway, caller: Principal, wanted: WantedDeployment) -> DeploymentSpec:
    model = pin(here, caller.tenant, wanted.model, MODELS, "model")
    _check_resources(wanted.resources)
    adapters = [_adapter(here, caller, ref, model, f"adapters.{number}") for number, ref in enumerate(wanted.adapters)]
    if len(adapters) > wanted.max_loras:
        raise BadRequest(
            f"{len(adapters)} adapters are more than max_loras ({wanted.max_loras}).",
            param="max_loras",
            code="invalid_value",
        )
    return DeploymentSpec(
        model=model,
        adapters=adapters,
        resources=Resources.model_validate(wanted.resources.model_dump()),
        **wanted.model_dump(exclude={"name", "model", "adapters", "resources"}),
    )


def _check_resources(wanted: Resources) -> None:
    """Raises BadRequest for what only a job has."""
    for name, given in (("nodes", wanted.nodes > 1), ("ranks_per_node", wanted.ranks_per_node is not None)):
        if given:
            raise BadRequest(
                f"resources.{name}: a replica runs on one node, and its engine shares out its devices; leave it out.",
                param=f"resources.{name}",
                code="invalid_value",
            )


def _adapter(here: Gateway, caller: Principal, ref: str, model: ArtifactPin, param: str) -> ArtifactPin:
    """The adapter's version. Raises BadRequest where it was made for another model."""
    adapter = pin(here, caller.tenant, ref, ADAPTERS, param)
    base = here.view.artifacts.get(caller.tenant, adapter.ref).manifest.metadata.get("base_model")
    if base and base != model.ref and here.view.artifacts.find(caller.tenant, str(base)):
        raise BadRequest(
            f"{adapter.ref!r} is an adapter of {base!r}, not of {model.ref!r}.", param=param, code="wrong_base"
        )
    return adapter
