"""A node agent under test: a bus, a store, a real Valkey for replies, and for requests if not Kafka; real replicas."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from services.inference import main as inference
from shared import replies, requests
from shared.bus.port import Bus, Record
from shared.contracts.artifacts import ArtifactKind, ArtifactPin, Manifest, ManifestFile, blob_key, manifest_key
from shared.contracts.deployments import (
    DeploymentSpec,
    DesiredDeployment,
    ReplicaPlace,
    ReplicaState,
    ReplicaStatus,
    deployment_key,
)
from shared.contracts.inference import Cancel, Frame, FrameKind, Request
from shared.contracts.nodes import NodeHeartbeat, Role
from shared.contracts.topics import DEPLOYMENTS_DESIRED, DEPLOYMENTS_STATUS, NODES_HEARTBEATS
from shared.node_name import NodeName
from shared.settings import Settings
from shared.store.port import ObjectStore
from shared.store.staging import sha256_of
from tests.waiting import aeventually

LAST_KINDS = {FrameKind.end, FrameKind.refused, FrameKind.failed}


def register(
    store: ObjectStore, name: str, version: int, folder: Path, kind: ArtifactKind, **metadata: Any
) -> ArtifactPin:
    """Put a folder into the store as the registry would."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    entries = []
    for path in files:
        digest = sha256_of(path)
        store.put_file(blob_key(digest), path)
        relative = path.relative_to(folder).as_posix()
        entries.append(ManifestFile(path=relative, size_bytes=path.stat().st_size, sha256=digest))
    key = manifest_key("default", name, version)
    store.put_bytes(key, Manifest(files=entries, metadata=metadata).model_dump_json().encode())
    return ArtifactPin(name=name, version=version, kind=kind, manifest_key=key)


@dataclass
class Watched:
    """What the agent has published: every status of every replica, in order, and the last heartbeat."""

    statuses: dict[str, list[ReplicaStatus | None]] = field(default_factory=dict)
    heartbeats: list[NodeHeartbeat] = field(default_factory=list)

    def on_status(self, record: Record) -> None:
        assert record.message is None or isinstance(record.message, ReplicaStatus)
        self.statuses.setdefault(record.key, []).append(record.message)

    def on_heartbeat(self, record: Record) -> None:
        assert isinstance(record.message, NodeHeartbeat)
        self.heartbeats.append(record.message)

    def last(self, replica_id: str) -> ReplicaStatus | None:
        said = self.statuses.get(replica_id)
        return said[-1] if said else None

    def states(self, replica_id: str) -> list[ReplicaState]:
        """The states it went through, each change once."""
        states: list[ReplicaState] = []
        for status in self.statuses.get(replica_id, []):
            if status is not None and (not states or states[-1] is not status.state):
                states.append(status.state)
        return states


class Desk:
    """The scheduler's and a gateway's part: wants deployments, sends requests, gathers answers."""

    def __init__(self, bus: Bus, redis_url: str, store: ObjectStore, node: str = "n1", requests_url: str = "") -> None:
        self.bus = bus
        self.store = store
        self.node = node
        self.watched = Watched()
        self.versions: dict[str, int] = {}
        self.frames: dict[str, list[Frame]] = {}
        self.batches: list[Sequence[Frame]] = []
        self.address = ""
        self._replies = replies.connect(redis_url)
        self._requests = requests.connect(requests_url or redis_url)
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self.bus.follow(DEPLOYMENTS_STATUS, self.watched.on_status)
        self.bus.follow(NODES_HEARTBEATS, self.watched.on_heartbeat)
        self.address = await self._replies.open()
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        if self._reading:
            self._reading.cancel()
        await self._replies.close()
        await self._requests.close()

    def want(self, name: str, spec: DeploymentSpec | None, *replicas: str) -> None:
        """Desire the deployment with these replicas on this node; None is a tombstone."""
        key = deployment_key("default", name)
        if spec is None:
            self.bus.publish(DEPLOYMENTS_DESIRED, key, None).result()
            return
        self.versions[name] = self.versions.get(name, 0) + 1
        places = [ReplicaPlace(replica_id=replica, node=self.node) for replica in replicas]
        desired = DesiredDeployment(name=name, version=self.versions[name], spec=spec, replicas=places)
        self.bus.publish(DEPLOYMENTS_DESIRED, key, desired).result()

    async def until(self, replica: str, state: ReplicaState, timeout_s: float = 30) -> ReplicaStatus:
        """The replica's last status, once it is of that state."""

        def there() -> ReplicaStatus | None:
            status = self.watched.last(replica)
            return status if status and status.state is state else None

        status = await aeventually(there, timeout_s, f"{replica} {state}")
        assert status is not None
        return status

    async def gone(self, replica: str) -> None:
        """The replica's tombstone."""
        await aeventually(lambda: self.watched.statuses.get(replica, [0])[-1] is None, 30, f"{replica} gone")

    async def ask(self, replica: str, body: dict[str, Any], path: str = "/v1/chat/completions", **fields: Any) -> str:
        """Send a request; its id."""
        request_id: str = fields.pop("id", uuid4().hex)
        fields = {"attempt": 1, "reply_to": self.address, **fields}
        raw = json.dumps(body).encode()
        await self._requests.send(replica, Request(id=request_id, path=path, body=raw, **fields))
        return request_id

    async def cancel(self, replica: str, request_id: str) -> None:
        await self._requests.send(replica, Cancel(request_id, 1))

    def seen(self, request_id: str) -> list[Frame]:
        return self.frames.get(request_id, [])

    async def answer(self, request_id: str, timeout_s: float = 30) -> list[Frame]:
        """All frames of an answer, once the last is there."""
        await aeventually(
            lambda: any(frame.kind in LAST_KINDS for frame in self.seen(request_id)), timeout_s, "the last frame"
        )
        return self.seen(request_id)

    async def _read(self) -> None:
        async for batch in self._replies.frames():
            self.batches.append(batch)
            for frame in batch:
                self.frames.setdefault(frame.request, []).append(frame)


def text_of(frames: Sequence[Frame]) -> bytes:
    return b"".join(frame.data for frame in frames if frame.kind in {FrameKind.body, FrameKind.end})


@asynccontextmanager
async def running_agent(settings: Settings, bus: Bus, store: ObjectStore) -> AsyncIterator[None]:
    """The agent in this process, its replicas real; stopped in order afterwards, and `bus` closed by it."""
    stop = asyncio.Event()
    with NodeName(settings.home / "inference", settings.node, Role.inference) as name:
        serving = asyncio.create_task(inference.serve(settings, bus, store, name, stop))
        try:
            yield
        finally:
            stop.set()
            await asyncio.wait_for(serving, 60)
