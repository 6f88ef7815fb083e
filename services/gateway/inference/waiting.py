"""Why a deployed model does not answer yet, as a sentence, and when to come again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.gateway.inference.errors import ModelNotReady
from services.gateway.inference.replicas import Replica
from shared.contracts.deployments import DesiredDeployment, ReplicaState

ON_ITS_WAY = (ReplicaState.loading, ReplicaState.pulling)
LOADING_RETRY_S = 5.0
ADAPTER_RETRY_S = 1.0
FAILED_RETRY_S = 30.0


def why_not_ready(ref: str, deployments: Sequence[DesiredDeployment], replicas: Mapping[str, Replica]) -> ModelNotReady:
    """The error for a version that is deployed and that no replica can answer for."""
    wanted = [place.replica_id for deployment in deployments for place in deployment.replicas]
    known = [replicas[replica_id] for replica_id in wanted if replica_id in replicas]
    name = deployments[0].name
    for replica in known:
        if reason := replica.status.failed_adapters.get(ref):
            return ModelNotReady(f"{ref!r} could not be loaded: {reason}", retry_after_s=FAILED_RETRY_S)
    if any(replica.ready for replica in known):
        return ModelNotReady(f"{ref!r} is being loaded; try again in a moment", retry_after_s=ADAPTER_RETRY_S)
    if not wanted:
        return _not_placed(name, ref, deployments[0])
    coming = [replica for replica in known if replica.status.state in ON_ITS_WAY]
    if not coming and (failed := [one for one in known if one.status.state is ReplicaState.failed]):
        reason = failed[0].status.reason or "it gave no reason"
        sentence = f"Deployment {name!r} of {ref!r} has failed: {reason}"
        return ModelNotReady(sentence, retry_after_s=FAILED_RETRY_S)
    return ModelNotReady(f"Deployment {name!r} of {ref!r} is {_progress(coming)}", retry_after_s=LOADING_RETRY_S)


def _not_placed(name: str, ref: str, deployment: DesiredDeployment) -> ModelNotReady:
    if deployment.spec.replicas == 0:
        sentence = f"Deployment {name!r} of {ref!r} is scaled to 0 replicas: scale it to at least one"
    elif deployment.failures:
        sentence = f"Deployment {name!r} of {ref!r} has failed: {deployment.problem or deployment.failures[-1].reason}"
        return ModelNotReady(sentence, retry_after_s=FAILED_RETRY_S)
    else:
        sentence = f"Deployment {name!r} of {ref!r} has no place yet: {deployment.problem or 'it is being placed'}"
    return ModelNotReady(sentence, retry_after_s=LOADING_RETRY_S)


def _progress(coming: Sequence[Replica]) -> str:
    furthest = max(coming, key=_how_far, default=None)
    if furthest is None:
        return "starting"
    percent = furthest.status.percent
    return str(furthest.status.state) if percent is None else f"{furthest.status.state} ({percent:.0f} %)"


def _how_far(replica: Replica) -> tuple[bool, float]:
    return replica.status.state is ReplicaState.loading, replica.status.percent or 0
