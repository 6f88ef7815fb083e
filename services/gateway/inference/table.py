"""The routing table: which replicas answer for the model that a request names. In memory, fed by the state topics."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.gateway.inference.artifacts import Artifacts
from services.gateway.inference.replicas import Replica
from services.gateway.inference.waiting import why_not_ready
from shared.bus.port import Record
from shared.contracts import topics
from shared.contracts.artifacts import artifact_key, split_ref
from shared.contracts.deployments import DesiredDeployment, ReplicaStatus, deployment_key

NAMED_IN_ERRORS = 12


@dataclass
class Route:
    """An immutable version and the replicas that are ready to answer for it."""

    ref: str
    replicas: list[Replica] = field(default_factory=list)


class RoutingTable:
    """Deployments, their replicas, and the registry's names. Belongs to one event loop; not for threads."""

    def __init__(self) -> None:
        self.replicas: dict[str, Replica] = {}
        self._artifacts = Artifacts()
        self._deployments: dict[str, DesiredDeployment] = {}
        self._routes: dict[tuple[str, str], Route] = {}

    def apply(self, record: Record, now: float) -> Replica | None:
        """Take one record of the three topics. Returns the replica that it is about, if it is about one."""
        self._routes.clear()
        if record.topic == topics.REGISTRY_STATE:
            self._artifacts.apply(record)
        elif record.topic == topics.DEPLOYMENTS_DESIRED:
            self._apply_desired(record)
        elif record.topic == topics.DEPLOYMENTS_STATUS:
            return self._apply_status(record, now)
        return None

    def resolve(self, tenant: str, model: str) -> Route:
        """What answers for `model`: a deployment's name, `name`, `name@3`, `name@alias`.

        Raises ModelNotFound, ModelNotDeployed, ModelNotReady.
        """
        route = self._routes.get((tenant, model))
        if route is None:
            route = self._routes[tenant, model] = self._find(tenant, model)
        return route

    def _apply_desired(self, record: Record) -> None:
        known = self._deployments.get(record.key)
        if record.message is None:
            self._deployments.pop(record.key, None)
        elif isinstance(record.message, DesiredDeployment) and (not known or record.message.version >= known.version):
            self._deployments[record.key] = record.message

    def _apply_status(self, record: Record, now: float) -> Replica | None:
        replica = self.replicas.get(record.key)
        match record.message:
            case None if replica:
                del self.replicas[record.key]
                replica.gone()
            case ReplicaStatus() as status if replica:
                replica.update(status, now)
            case ReplicaStatus() as status:
                replica = self.replicas[record.key] = Replica(status, now)
        return replica

    def _find(self, tenant: str, model: str) -> Route:
        deployment = self._deployments.get(deployment_key(tenant, model))
        if deployment:
            return self._route_to_deployment(deployment)
        name, which = split_ref(model)
        if which is None:
            ref = self._pick_version(tenant, name)
        else:
            version = self._artifacts.version(tenant, name, which)
            ref = f"{name}@{version}" if version is not None else None
        serving = [deployment for deployment in self._of(tenant) if ref in self._offered(deployment)]
        if ref is None or not serving:
            raise self._artifacts.why_not_served(tenant, model, self._what_is_served(tenant))
        replicas = [replica for each in serving for replica in self._placed(each) if replica.serves(ref)]
        if not replicas:
            raise why_not_ready(ref, serving, self.replicas)
        return Route(ref, replicas)

    def _route_to_deployment(self, deployment: DesiredDeployment) -> Route:
        """Its own replicas only. While it moves to another version, the one before goes on answering."""
        ready = [replica for replica in self._placed(deployment) if replica.ready]
        if not ready:
            raise why_not_ready(deployment.spec.model.ref, [deployment], self.replicas)
        wanted = deployment.spec.model.ref
        ref = wanted if any(replica.status.model == wanted for replica in ready) else ready[0].status.model
        return Route(ref, [replica for replica in ready if replica.status.model == ref])

    def _pick_version(self, tenant: str, name: str) -> str | None:
        """For a bare name: `production` if it is served, else the newest served; else the same of what is deployed."""
        deployments = self._of(tenant)
        ready = {ref for each in deployments for ref in self._served(each)}
        offered = {ref for each in deployments for ref in self._offered(each)}
        production = self._artifacts.alias(tenant, name, "production")
        for refs in (ready, offered):
            versions = [int(which) for base, which in map(split_ref, refs) if base == name and which is not None]
            if production in versions:
                return f"{name}@{production}"
            if versions:
                return f"{name}@{max(versions)}"
        return None

    def _of(self, tenant: str) -> list[DesiredDeployment]:
        prefix = artifact_key(tenant, "")
        return [deployment for key, deployment in self._deployments.items() if key.startswith(prefix)]

    def _placed(self, deployment: DesiredDeployment) -> list[Replica]:
        return [self.replicas[place.replica_id] for place in deployment.replicas if place.replica_id in self.replicas]

    def _served(self, deployment: DesiredDeployment) -> set[str]:
        ready = [replica for replica in self._placed(deployment) if replica.ready]
        return {ref for replica in ready for ref in (replica.status.model, *replica.adapters) if ref}

    def _offered(self, deployment: DesiredDeployment) -> set[str]:
        wanted = {deployment.spec.model.ref, *(adapter.ref for adapter in deployment.spec.adapters)}
        return wanted | self._served(deployment)

    def _what_is_served(self, tenant: str) -> str:
        deployments = self._of(tenant)
        names = {deployment.name for deployment in deployments if self._served(deployment)}
        names |= {ref for deployment in deployments for ref in self._served(deployment)}
        if not names:
            return "No model is served now."
        listed = sorted(names)
        more = f" and {len(listed) - NAMED_IN_ERRORS} more" if len(listed) > NAMED_IN_ERRORS else ""
        return f"Served now: {', '.join(listed[:NAMED_IN_ERRORS])}{more}."
