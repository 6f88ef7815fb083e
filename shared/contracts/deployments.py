"""Deployments: a model version served by replicas, each a process on some node."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from shared.contracts.artifacts import ArtifactName, ArtifactPin
from shared.contracts.jobs import Resources
from shared.contracts.message import Message, Value


class DeploymentSpec(Value):
    """What to serve. `model` and `adapters` are immutable versions."""

    model: ArtifactPin
    replicas: int = Field(default=1, ge=0, le=1024)
    adapters: list[ArtifactPin] = Field(default_factory=list)
    auto_adapters: bool = True
    """Adopt every registered adapter whose base is this model version, the newest `max_loras` of them."""
    max_loras: int = Field(default=4, ge=0, le=256)
    max_lora_rank: int = Field(default=16, ge=1, le=512)
    """Room that every adapter takes, whatever its own rank: on a CPU, 64 answers four times slower than 16."""
    engine: str = "vllm"
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Handed to the engine as they are: `{"max_model_len": 2048}` is vLLM's `--max-model-len 2048`."""
    max_queue: int = Field(default=256, ge=1)
    """Requests that a replica holds at once; past that it refuses."""
    resources: Resources = Resources()


# Commands, gateway → scheduler. Key: `tenant/name`.


class Deploy(Message):
    """Create the deployment, or change it to this."""

    name: ArtifactName
    spec: DeploymentSpec


class Scale(Message):
    name: ArtifactName
    replicas: int = Field(ge=0, le=1024)


class Undeploy(Message):
    name: ArtifactName


# States.


class ReplicaPlace(Value):
    """One replica's seat."""

    replica_id: str
    node: str
    devices: list[int] = Field(default_factory=list)


class ReplicaFailure(Value):
    """A replica that its agent gave up, so that it lost its seat."""

    replica_id: str
    node: str
    reason: str
    at: datetime


class DesiredDeployment(Message):
    """What inference agents converge to, on `deployments.desired` (key: `tenant/name`). A tombstone: stop it all.

    `spec.adapters` holds the adopted ones too. `problem` says why fewer replicas are placed than wanted.
    """

    name: str
    version: int
    spec: DeploymentSpec
    replicas: list[ReplicaPlace] = Field(default_factory=list)
    problem: str = ""
    failures: list[ReplicaFailure] = Field(default_factory=list)
    """Where it failed since it was last deployed or scaled, oldest first, one a node: those are not tried again."""


class ReplicaState(StrEnum):
    pulling = "pulling"
    loading = "loading"
    ready = "ready"
    draining = "draining"
    failed = "failed"
    stopped = "stopped"


class Load(Value):
    """What a replica is doing: requests in the engine and those waiting for it."""

    running: int = 0
    waiting: int = 0


class ReplicaStatus(Message):
    """One replica, on `deployments.status` (key: the replica). A tombstone: it is gone for good."""

    replica_id: str
    deployment: str
    node: str
    state: ReplicaState
    percent: float | None = None
    reason: str = ""
    model: str = ""
    """The served version, `name@3`."""
    adapters: list[str] = Field(default_factory=list)
    """Refs (`name@3`) that it has loaded."""
    failed_adapters: dict[str, str] = Field(default_factory=dict)
    """Ref → why it could not be loaded."""
    load: Load = Load()
    max_model_len: int | None = None
    restarts: int = 0
    boot_id: str = ""
    """New for every start of the replica's process."""
    seq: int = 0
    deployment_version: int = 0
    """The version of the desired deployment that it follows; 0 where the agent does not say."""


def deployment_key(tenant: str, name: str) -> str:
    return f"{tenant}/{name}"
