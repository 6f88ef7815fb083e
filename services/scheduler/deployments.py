"""Deployments: which replicas sit where, and which adapters they carry. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import Field

from services.scheduler.placement import Need, Rooms, Use
from shared.contracts.artifacts import ArtifactKind, ArtifactPin, ArtifactVersionState, version_key
from shared.contracts.deployments import (
    DeploymentSpec,
    DesiredDeployment,
    ReplicaFailure,
    ReplicaPlace,
    ReplicaState,
    ReplicaStatus,
    deployment_key,
)
from shared.contracts.jobs import Resources
from shared.contracts.message import Value
from shared.contracts.nodes import Role

TRIED_NODES = 3
"""A deployment that failed on so many nodes, and on as many as it has replicas, would fail on the next one too."""


class LeavingReplica(ReplicaPlace):
    """A replica that nobody wants any more, with what it was given: its deployment may ask for other things by now."""

    holds: Resources | None = None
    """None in what was written down by a version that did not tell."""


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
    leaving: list[LeavingReplica] = Field(default_factory=list)
    """They hold what they have until their node no longer lists them."""
    asked_version: int = 0
    """The version at which a person deployed or scaled it last: what failed before that does not count."""
    failures: list[ReplicaFailure] = Field(default_factory=list)
    """Since then, oldest first, one a node: those nodes are not tried again."""
    problem: str = ""
    deleted: bool = False

    @property
    def key(self) -> str:
        return deployment_key(self.tenant, self.name)

    def uses(self) -> list[Use]:
        held = [(seat, self.spec.resources) for seat in self.replicas]
        held += [(seat, seat.holds or self.spec.resources) for seat in self.leaving]
        return [Use(seat.node, Role.inference, has.cpus, has.memory_bytes, seat.devices) for seat, has in held]

    def leave(self, seats: list[ReplicaPlace]) -> list[LeavingReplica]:
        """What is leaving when these of its replicas do so too."""
        wants = self.spec.resources
        return [*self.leaving, *(LeavingReplica(**seat.model_dump(), holds=wants) for seat in seats)]


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
        failures=deployment.failures,
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


class GivenUp:
    """Replicas that their agents do not start any more, by their last status."""

    def __init__(self) -> None:
        self._statuses: dict[str, ReplicaStatus] = {}

    def saw(self, replica_id: str, status: ReplicaStatus | None) -> bool:
        """A replica's status as it is now; None: it is gone. Returns whether it was given up."""
        if status is None or status.state is not ReplicaState.failed:
            self._statuses.pop(replica_id, None)
            return False
        self._statuses[replica_id] = status
        return True

    def failure(self, deployment: Deployment, seat: ReplicaPlace) -> ReplicaFailure | None:
        """Why the seat's replica was given up; None where it was not, or was before the deployment was last asked for.

        Agents that do not say which version they follow are believed.
        """
        status = self._statuses.get(seat.replica_id)
        if status is None or 0 < status.deployment_version < deployment.asked_version:
            return None
        return ReplicaFailure(replica_id=seat.replica_id, node=seat.node, reason=status.reason, at=status.at)


@dataclass(frozen=True)
class Surroundings:
    """What a plan is made from besides the deployment."""

    artifacts: Artifacts
    given_up: GivenUp
    is_gone: Callable[[str], bool]
    """Whether an inference node has been silent for too long."""
    still_there: Callable[[ReplicaPlace], bool]
    """Whether the node of a leaving replica may still hold it."""
    new_id: Callable[[str], str]


def changed_spec(deployment: Deployment, spec: DeploymentSpec) -> Deployment:
    """Asked for anew: it may be tried again wherever it failed, so even the same spec makes a new version.

    Replicas keep their seats, unless those have become too small or too large.
    """
    version = deployment.version + 1
    asked = deployment.changed(spec=spec, deleted=False, failures=[], version=version, asked_version=version)
    if deployment.deleted or spec.resources == deployment.spec.resources:
        return asked
    return asked.changed(replicas=[], leaving=deployment.leave(deployment.replicas))


def undeployed(deployment: Deployment) -> Deployment:
    """Gone for readers and agents; the row stays, so that versions go on growing if the name is deployed again."""
    leaving = deployment.leave(deployment.replicas)
    return _changed(deployment, deleted=True, replicas=[], leaving=leaving, adapters=[], failures=[], problem="")


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
    going, given_up = _without_given_up(deployment, around)
    seats, dropped = going.replicas[: spec.replicas], given_up + going.replicas[spec.replicas :]
    if model_there:
        seats = [_seat_elsewhere(going, seat, need, rooms, around) or seat for seat in seats]
        seats += _new_seats(going, spec.replicas - len(seats), need, rooms, around)
    adapters, missing = _adapters(deployment, around.artifacts)
    waiting = sorted({seat.node for seat in seats if around.is_gone(seat.node)})
    problems = [
        "" if model_there else f"the model {spec.model.ref} is not in the registry",
        f"not in the registry: {', '.join(missing)}" if missing else "",
        f"waits for the node {', '.join(waiting)}, which does not answer" if waiting else "",
        _too_few(going, len(seats), need, rooms) if model_there else "",
    ]
    return _changed(
        deployment,
        replicas=seats,
        leaving=going.changed(leaving=leaving).leave([seat for seat in dropped if not around.is_gone(seat.node)]),
        adapters=adapters,
        failures=going.failures,
        problem="; ".join(filter(None, problems)),
    )


def _without_given_up(deployment: Deployment, around: Surroundings) -> tuple[Deployment, list[ReplicaPlace]]:
    """The deployment with its failed replicas noted as such, and the seats that they give back."""
    failed = {
        seat.replica_id: failure
        for seat in deployment.replicas
        if (failure := around.given_up.failure(deployment, seat))
    }
    by_node = {failure.node: failure for failure in [*deployment.failures, *failed.values()]}
    replicas = [seat for seat in deployment.replicas if seat.replica_id not in failed]
    going = deployment.changed(replicas=replicas, failures=list(by_node.values()))
    return going, [seat for seat in deployment.replicas if seat.replica_id in failed]


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
    """Not on nodes where it failed; after a failure the largest nodes are tried first."""
    failed_on = {failure.node for failure in deployment.failures}
    if len(failed_on) >= max(TRIED_NODES, deployment.spec.replicas):
        return []
    found = []
    for _ in range(count):
        place = rooms.find(need, never=failed_on, largest_first=bool(failed_on))
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


def _too_few(deployment: Deployment, placed: int, need: Need, rooms: Rooms) -> str:
    wanted = deployment.spec.replicas
    if placed >= wanted:
        return ""
    if failures := deployment.failures:
        nodes = ", ".join(sorted(failure.node for failure in failures))
        again = f"{placed} of {wanted} replicas are placed; deploy or scale it again to try once more"
        return f"failed on {nodes}: {failures[-1].reason} ({again})"
    why = rooms.why_never(need) or "no inference node has room for more"
    return f"{placed} of {wanted} replicas are placed: {why}"


def _changed(deployment: Deployment, **changes: Any) -> Deployment:
    after = deployment.changed(**changes)
    return deployment if after == deployment else after.changed(version=deployment.version + 1)
