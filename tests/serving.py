"""What tests of serving stand on: states as scheduler, agents and registry publish them, and a scripted replica."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from shared.contracts.artifacts import (
    ArtifactAliasesState,
    ArtifactKind,
    ArtifactPin,
    ArtifactVersionState,
    Manifest,
    manifest_key,
)
from shared.contracts.deployments import (
    DeploymentSpec,
    DesiredDeployment,
    Load,
    ReplicaPlace,
    ReplicaState,
    ReplicaStatus,
)
from shared.contracts.inference import Cancel, Frame, FrameKind, Refusal, Request
from shared.replies.port import Replies
from shared.requests.port import Requests

TENANT = "default"


def pin(ref: str, kind: ArtifactKind = ArtifactKind.model) -> ArtifactPin:
    name, _, version = ref.partition("@")
    return ArtifactPin(
        name=name, version=int(version), kind=kind, manifest_key=manifest_key(TENANT, name, int(version))
    )


def desired(name: str, model: str, on: Sequence[str], *, version: int = 1, **fields: Any) -> DesiredDeployment:
    """Deployment `name` of `model` (a ref) on the replicas `on`. `adapters` are refs; other fields are the spec's."""
    adapters = [pin(ref, ArtifactKind.adapter) for ref in fields.pop("adapters", [])]
    problem = fields.pop("problem", "")
    spec = DeploymentSpec(model=pin(model), adapters=adapters, **{"replicas": len(on), **fields})
    places = [ReplicaPlace(replica_id=replica, node="here") for replica in on]
    return DesiredDeployment(name=name, version=version, spec=spec, replicas=places, problem=problem)


def status(replica: str, model: str, state: ReplicaState = ReplicaState.ready, **fields: Any) -> ReplicaStatus:
    fields = {"deployment": "any", "boot_id": f"{replica}-boot-1", "load": Load(), **fields}
    return ReplicaStatus(replica_id=replica, node="here", state=state, model=model, **fields)


def version_state(ref: str, kind: ArtifactKind = ArtifactKind.model, **metadata: Any) -> ArtifactVersionState:
    known = pin(ref, kind)
    return ArtifactVersionState(
        name=known.name,
        version=known.version,
        kind=kind,
        manifest_key=known.manifest_key,
        manifest=Manifest(files=[], metadata=metadata),
        publication_id=ref,
        created_at=datetime.now(UTC),
    )


def aliases_state(name: str, **aliases: int) -> ArtifactAliasesState:
    return ArtifactAliasesState(name=name, aliases=aliases, revision=1)


Script = Callable[["ScriptedReplica", Request], Awaitable[None]]


class ScriptedReplica:
    """A replica that speaks the contract and does as its script says. `asked` and `cancelled` are what came in."""

    def __init__(self, replica_id: str, requests: Requests, replies: Replies, script: Script) -> None:
        self.id = replica_id
        self.script = script
        self.asked: list[Request] = []
        self.cancelled: list[Cancel] = []
        self.cancels = asyncio.Event()
        self._requests = requests
        self._replies = replies
        self._seq: dict[tuple[str, int], int] = {}
        self._working: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ScriptedReplica:
        listening = asyncio.Event()
        self._reading = asyncio.create_task(self._read(listening))
        await listening.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._working, *([self._reading] if self._reading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def send(self, request: Request, kind: FrameKind, data: bytes = b"") -> None:
        key = (request.id, request.attempt)
        seq = self._seq.get(key, 0)
        self._seq[key] = seq + 1
        await self._replies.send(request.reply_to, [Frame(request.id, request.attempt, seq, kind, data, self.id)])

    async def start(self, request: Request, status: int = 200, content_type: str = "text/event-stream") -> None:
        head = (status, [(b"content-type", content_type.encode())])
        await self.send(request, FrameKind.start, msgspec.msgpack.encode(head))

    async def answer(self, request: Request, body: bytes, content_type: str = "application/json") -> None:
        await self.start(request, content_type=content_type)
        await self.send(request, FrameKind.end, body)

    async def refuse(self, request: Request, retry_after_s: float = 7) -> None:
        refusal = Refusal("its queue is full", 256, retry_after_s)
        await self.send(request, FrameKind.refused, msgspec.msgpack.encode(refusal))

    async def alive(self, request: Request, running: int = 1, waiting: int = 0) -> None:
        load = msgspec.msgpack.encode((running, waiting))
        await self._replies.send(request.reply_to, [Frame("", 0, 0, FrameKind.alive, load, self.id)])

    async def _read(self, listening: asyncio.Event) -> None:
        async with self._requests.inbox(self.id) as inbox:
            listening.set()
            async for item in inbox:
                if isinstance(item, Cancel):
                    self.cancelled.append(item)
                    self.cancels.set()
                else:
                    self.asked.append(item)
                    task = asyncio.create_task(self._work(item))
                    self._working.add(task)

    async def _work(self, request: Request) -> None:
        await self.script(self, request)
