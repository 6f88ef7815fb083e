"""Deployments: which replicas sit where, and which adapters they carry. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import Field

from services.scheduler.placement import Need, Rooms, Use
from shared.contracts.artifacts import ArtifactKind, ArtifactPin, ArtifactVersionState, version_key
from shared.contracts.deployments import DeploymentSpec, DesiredDeployment, ReplicaPlace, deployment_key
from shared.contracts.message import Value
from shared.contracts.nodes import Role


class Deployment(Value):
    """The truth about one deployment."""

    tenant: str = "default"
    name: str
    traceparent: str | None = None
    version: int = 1
    spec: DeploymentSpec
    """As it was asked for; the adopted adapters are beside it."""
    adapters: list[ArtifactPin] = Field(default_factory=list)
    replicas: list[ReplicaPlace] = Field(default_factory=list)
    """Oldest first."""
    leaving: list[ReplicaPlace] = Field(default_factory=list)
    """Replicas nobody wants any more, which hold their devices until their node no longer lists them."""
    problem: str = ""
    deleted: bool = False

    @property
    def key(self) -> str:
        return deployment_key(self.tenant, self.name)

    def uses(self) -> list[Use]:
        wants = self.spec.resources
        return [
            Use(seat.node, Role.inference, wants.cpus, wants.memory_bytes, seat.devices)
            for seat in [*self.replicas, *self.leaving]
        ]


def desired_deployment(deployment: Deployment) -> DesiredDeployment | None:
    """What agents converge to, as it goes on `deployments.desired`; None once it is undeployed."""
    if deployment.deleted:
        return None
    return DesiredDeployment(
        tenant=deployment.tenant,
        traceparent=deployment.traceparent,
        name=deployment.name,
        version=deployment.version,
        spec=deployment.spec.changed(adapters=deployment.adapters),
        replicas=deployment.replicas,
        problem=deployment.problem,
    )


@dataclass(frozen=True)
class Adapter:
    tenant: str
    pin: ArtifactPin
    base: str
    """`name@version` of the model it was trained on."""
    created_at: datetime


class Artifacts:
    """What the registry has, as far as deployments care: which versions exist, and the adapters of each base."""

    def __init__(self) -> None:
        self.caught_up = False
        self._versions: set[str] = set()
        self._adapters: dict[str, Adapter] = {}

    def saw(self, key: str, version: ArtifactVersionState | None) -> None:
        """A version as it is now; None: it was deleted. States of other keys (aliases) are not for here."""
        if version is None:
            self._versions.discard(key)
            self._adapters.pop(key, None)
            return
        self._versions.add(key)
        base = version.manifest.metadata.get("base_model")
        if version.kind is ArtifactKind.adapter and isinstance(base, str):
            self._adapters[key] = Adapter(version.tenant, version.pin, base, version.created_at)

    def has(self, tenant: str, pin: ArtifactPin) -> bool:
        return version_key(tenant, pin.name, pin.version) in self._versions

    def adapters_of(self, tenant: str, base: str) -> list[ArtifactPin]:
        """The newest first."""
        found = [each for each in list(self._adapters.values()) if each.tenant == tenant and each.base == base]
        return [each.pin for each in sorted(found, key=lambda each: each.created_at, reverse=True)]


@dataclass(frozen=True)
class Surroundings:
    """What a plan is made from besides the deployment."""

    artifacts: Artifacts
    is_gone: Callable[[str], bool]
    """Whether an inference node has been silent for too long."""
    still_there: Callable[[ReplicaPlace], bool]
    """Whether the node of a leaving replica may still hold it."""
    new_id: Callable[[str], str]


def changed_spec(deployment: Deployment, spec: DeploymentSpec) -> Deployment:
    """Deployed anew: replicas keep their seats, unless those have become too small or too large."""
    if deployment.deleted or spec.resources == deployment.spec.resources:
        return _changed(deployment, spec=spec, deleted=False)
    return _changed(deployment, spec=spec, replicas=[], leaving=[*deployment.leaving, *deployment.replicas])


def undeployed(deployment: Deployment) -> Deployment:
    """Gone for readers and agents; the row stays, so that versions go on growing if the name is deployed again."""
    leaving = [*deployment.leaving, *deployment.replicas]
    return _changed(deployment, deleted=True, replicas=[], leaving=leaving, adapters=[], problem="")


def plan(deployment: Deployment, rooms: Rooms, around: Surroundings) -> Deployment:
    """The deployment as it should be now: the same object when nothing is to change.

    `rooms` is what is free beside all that is placed; placing takes from it.
    """
    leaving = [seat for seat in deployment.leaving if around.still_there(seat)]
    if deployment.deleted:
        return _changed(deployment, leaving=leaving)
    spec = deployment.spec
    need = rooms.need(spec.resources.changed(nodes=1), wants_device=True)
    model_there = around.artifacts.has(deployment.tenant, spec.model)
    seats, dropped = deployment.replicas[: spec.replicas], deployment.replicas[spec.replicas :]
    if model_there:
        seats = [_seat_elsewhere(deployment, seat, need, rooms, around) or seat for seat in seats]
        seats += _new_seats(deployment, spec.replicas - len(seats), need, rooms, around)
    adapters, missing = _adapters(deployment, around.artifacts)
    waiting = sorted({seat.node for seat in seats if around.is_gone(seat.node)})
    problems = [
        "" if model_there else f"the model {spec.model.ref} is not in the registry",
        f"not in the registry: {', '.join(missing)}" if missing else "",
        f"waits for the node {', '.join(waiting)}, which does not answer" if waiting else "",
        _too_few(len(seats), spec.replicas, need, rooms) if model_there else "",
    ]
    return _changed(
        deployment,
        replicas=seats,
        leaving=leaving + [seat for seat in dropped if not around.is_gone(seat.node)],
        adapters=adapters,
        problem="; ".join(filter(None, problems)),
    )


def _seat_elsewhere(
    deployment: Deployment, seat: ReplicaPlace, need: Need, rooms: Rooms, around: Surroundings
) -> ReplicaPlace | None:
    """A new seat for a replica whose node is gone, if there is room: with a new id, so that the old cannot return."""
    if not around.is_gone(seat.node):
        return None
    found = _new_seats(deployment, 1, need, rooms, around)
    return found[0] if found else None


def _new_seats(
    deployment: Deployment, count: int, need: Need, rooms: Rooms, around: Surroundings
) -> list[ReplicaPlace]:
    found = []
    for _ in range(count):
        place = rooms.find(need)
        if place is None:
            break
        seat = ReplicaPlace(replica_id=around.new_id(deployment.name), node=place[0].node, devices=place[0].devices)
        found.append(seat)
    return found


def _adapters(deployment: Deployment, artifacts: Artifacts) -> tuple[list[ArtifactPin], list[str]]:
    """What every replica carries, and the refs that were asked for but are not there."""
    spec = deployment.spec
    asked = [pin for pin in spec.adapters if artifacts.has(deployment.tenant, pin)]
    missing = [pin.ref for pin in spec.adapters if pin not in asked]
    adopted = artifacts.adapters_of(deployment.tenant, spec.model.ref) if spec.auto_adapters else []
    room = max(0, spec.max_loras - len(asked))
    return asked + [pin for pin in adopted if pin not in asked][:room], missing


def _too_few(placed: int, wanted: int, need: Need, rooms: Rooms) -> str:
    if placed >= wanted:
        return ""
    why = rooms.why_never(need) or "no inference node has room for more"
    return f"{placed} of {wanted} replicas are placed: {why}"


def _changed(deployment: Deployment, **changes: Any) -> Deployment:
    after = deployment.changed(**changes)
    return deployment if after == deployment else after.changed(version=deployment.version + 1)
