"""Deployments with their replicas, and nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.gateway.answers import unix
from services.gateway.view.deployments import Deployment
from services.gateway.view.fleet import Heard
from shared.contracts.deployments import ReplicaState, ReplicaStatus


def deployment(found: Deployment, replicas: Sequence[ReplicaStatus]) -> dict[str, Any]:
    """What is wanted, what there is, and why they differ."""
    spec = found.spec
    replicas = its_own(found, replicas)
    ready = sum(status.state is ReplicaState.ready for status in replicas)
    return {
        "id": found.name,
        "object": "deployment",
        "name": found.name,
        "model": spec.model.ref,
        "status": status_of(found, replicas),
        "replicas": spec.replicas,
        "ready_replicas": ready,
        "problem": _problem(found, replicas),
        "adapters": [pin.ref for pin in spec.adapters],
        "auto_adapters": spec.auto_adapters,
        "max_loras": spec.max_loras,
        "max_lora_rank": spec.max_lora_rank,
        "engine": spec.engine,
        "engine_args": spec.engine_args,
        "max_queue": spec.max_queue,
        "resources": spec.resources.model_dump(mode="json"),
        "created_at": unix(found.created_at),
        "version": found.desired.version if found.desired else 0,
        "replica_statuses": [_replica(status) for status in replicas],
    }


def its_own(found: Deployment, replicas: Sequence[ReplicaStatus]) -> list[ReplicaStatus]:
    """Those that have a seat, those that still answer without one, and, while some are missing, those that were given
    up: the last words of others stay on the topic."""
    seated = {place.replica_id for place in found.desired.replicas} if found.desired else set()
    answering = (ReplicaState.ready, ReplicaState.draining)
    own = [status for status in replicas if status.replica_id in seated or status.state in answering]
    complete = sum(status.state is ReplicaState.ready for status in own) >= found.spec.replicas
    return own if complete else [*own, *_given_up(found)]


def _given_up(found: Deployment) -> list[ReplicaStatus]:
    """Replicas that lost their seats since the last change: their agents take back what they said of them."""
    if found.desired is None or found.wanted is not None:
        return []
    return [
        ReplicaStatus(
            tenant=found.tenant,
            replica_id=failure.replica_id,
            deployment=found.name,
            node=failure.node,
            state=ReplicaState.failed,
            reason=failure.reason,
            model=found.desired.spec.model.ref,
        )
        for failure in found.desired.failures
    ]


def status_of(found: Deployment, replicas: Sequence[ReplicaStatus]) -> str:
    """`deleting`, `pending` (not scheduled yet), `stopped`, `ready`, `degraded`, `failed` or `starting`."""
    if found.deleting:
        return "deleting"
    if found.desired is None:
        return "pending"
    if found.spec.replicas == 0:
        return "stopped"
    # A replica that still serves the model before a change is not what is wanted now.
    wanted = [status for status in its_own(found, replicas) if status.model in ("", found.spec.model.ref)]
    states = [status.state for status in wanted]
    ready = states.count(ReplicaState.ready)
    if ready:
        return "ready" if ready >= found.spec.replicas else "degraded"
    if states and all(state is ReplicaState.failed for state in states) and _scheduler_problem(found):
        return "failed"
    return "starting"


def node(name: str, roles: Sequence[Heard], silent_after_s: float) -> dict[str, Any]:
    """A machine, and what each of its agents says of it."""
    return {
        "id": name,
        "object": "node",
        "name": name,
        "alive": any(_alive(heard, silent_after_s) for heard in roles),
        "roles": [
            {
                "role": heard.heartbeat.role,
                "alive": _alive(heard, silent_after_s),
                "silent_s": round(heard.silent_s, 1),
                "capacity": heard.heartbeat.capacity.model_dump(mode="json"),
                "runs": [run.model_dump(mode="json") for run in heard.heartbeat.runs],
                "replicas": heard.heartbeat.replicas,
                "version": heard.heartbeat.version,
                "stopping": heard.heartbeat.stopping,
            }
            for heard in roles
        ],
    }


def _alive(heard: Heard, silent_after_s: float) -> bool:
    return heard.silent_s < silent_after_s and not heard.heartbeat.stopping


def _problem(found: Deployment, replicas: Sequence[ReplicaStatus]) -> str:
    """What a person should know: of replicas also why one starts again, and what it failed of not long ago."""
    failed_first = sorted(replicas, key=lambda status: status.state is not ReplicaState.failed)
    return _scheduler_problem(found) or next((status.reason for status in failed_first if status.reason), "")


def _scheduler_problem(found: Deployment) -> str:
    """Why what is wanted cannot be. None so far: it has not answered the last change or failure, and may try again."""
    return found.desired.problem if found.desired and found.wanted is None else ""


def _replica(status: ReplicaStatus) -> dict[str, Any]:
    words = {"replica_id", "node", "state", "percent", "reason", "model", "adapters", "failed_adapters", "load"}
    return {"id": status.replica_id, **status.model_dump(mode="json", include=words | {"max_model_len", "restarts"})}
