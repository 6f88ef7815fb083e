"""A gateway on a free port, with a scheduler and a registry that speak the contract in this process."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn

from services.gateway.main import create_app
from shared.bus.port import Bus, Record
from shared.contracts.artifacts import (
    ArtifactAliasesState,
    ArtifactKind,
    ArtifactPin,
    ArtifactVersionState,
    CommandDone,
    CommandRejected,
    DeleteArtifact,
    Manifest,
    ManifestFile,
    PublishArtifact,
    SetAlias,
    artifact_key,
    blob_key,
    manifest_key,
    version_key,
)
from shared.contracts.deployments import (
    Deploy,
    DesiredDeployment,
    ReplicaFailure,
    ReplicaPlace,
    Scale,
    Undeploy,
    deployment_key,
)
from shared.contracts.jobs import (
    AttemptState,
    CancelJob,
    JobState,
    JobStatus,
    JobTransitioned,
    PauseJob,
    ResumeJob,
    SubmitJob,
)
from shared.contracts.message import Message
from shared.contracts.topics import (
    DEPLOYMENTS_COMMANDS,
    DEPLOYMENTS_DESIRED,
    JOBS_COMMANDS,
    JOBS_EVENTS,
    JOBS_STATE,
    REGISTRY_COMMANDS,
    REGISTRY_EVENTS,
    REGISTRY_STATE,
)
from shared.db import open_database
from shared.replies.memory import MemoryReplyHub
from shared.requests.memory import MemoryRequests
from shared.settings import Settings
from shared.store.port import ObjectStore
from shared.store.staging import read_manifest, staged_file_key, staged_manifest_key
from tests.ground import Ground, MemoryGround
from tests.waiting import eventually

KEY = "sk-llmos-test"


class Scheduler:
    """Shows every submitted job as queued; the test moves it on."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lock = threading.RLock()
        self.jobs: dict[str, JobState] = {}
        self.submits: list[SubmitJob] = []
        self.steered: list[Message] = []
        self.deployed: dict[str, DesiredDeployment] = {}
        self.failed: dict[str, ReplicaFailure] = {}
        bus.subscribe(JOBS_COMMANDS, "scheduler", self._on_jobs)
        bus.subscribe(DEPLOYMENTS_COMMANDS, "scheduler", self._on_deployments)

    def move(self, job_id: str, status: JobStatus, **changes: Any) -> JobState:
        """A transition, as the scheduler publishes it: the state, then the event."""
        eventually(lambda: self.jobs.get(job_id), what=f"the submit of {job_id}")
        with self._lock:
            before = self.jobs[job_id]
            after = before.changed(status=status, version=before.version + 1, **changes)
            self.jobs[job_id] = after
        self._bus.publish(JOBS_STATE, job_id, after)
        event = JobTransitioned(
            tenant=after.tenant, job_id=job_id, before=before.status, after=status, attempt=after.attempt
        )
        self._bus.publish(JOBS_EVENTS, job_id, event)
        return after

    def start(self, job_id: str, run_id: str = "run-a", attempt: int = 1) -> JobState:
        """Accept a run of an attempt."""
        now = datetime.now(UTC)
        place = AttemptState(attempt=attempt, runs={0: run_id}, dispatched_at=now, started_at=now)
        eventually(lambda: self.jobs.get(job_id), what=f"the submit of {job_id}")
        attempts = [*self.jobs[job_id].attempts, place]
        return self.move(job_id, JobStatus.running, attempt=attempt, attempts=attempts, started_at=now)

    def seat(self, name: str, replica_id: str, node: str, tenant: str = "default") -> None:
        """Place a replica of a deployment."""
        key = deployment_key(tenant, name)
        known = eventually(lambda: self.deployed.get(key), what=f"the deploy of {name}")
        places = [*known.replicas, ReplicaPlace(replica_id=replica_id, node=node)]
        self.deployed[key] = known.changed(version=known.version + 1, replicas=places)
        self._bus.publish(DEPLOYMENTS_DESIRED, key, self.deployed[key])

    def give_up(self, name: str, replica_id: str, node: str, reason: str, tenant: str = "default") -> None:
        """From now on the deployment fails on this node, however often it is asked for."""
        key = deployment_key(tenant, name)
        self.failed[key] = ReplicaFailure(replica_id=replica_id, node=node, reason=reason, at=datetime.now(UTC))
        known = self.deployed[key]
        self._desire(key, name, tenant, known, known.spec)

    def say(self, message: Any) -> None:
        self._bus.publish(JOBS_EVENTS, message.job_id, message).result()

    def _on_jobs(self, records: Sequence[Record]) -> None:
        for record in records:
            match record.message:
                case SubmitJob() as submit:
                    self.submits.append(submit)
                    self._queue(submit)
                case CancelJob() | PauseJob() | ResumeJob() as command:
                    self.steered.append(command)

    def _queue(self, submit: SubmitJob) -> None:
        with self._lock:
            if submit.job_id in self.jobs:
                return
            state = JobState(
                tenant=submit.tenant,
                job_id=submit.job_id,
                version=1,
                spec=submit.spec,
                status=JobStatus.queued,
                retry_of=submit.retry_of,
                created_at=submit.at,
            )
            self.jobs[submit.job_id] = state
        self._bus.publish(JOBS_STATE, submit.job_id, state)

    def _on_deployments(self, records: Sequence[Record]) -> None:
        for record in records:
            known = self.deployed.get(record.key)
            match record.message:
                case Deploy() as deploy:
                    self._desire(record.key, deploy.name, deploy.tenant, known, deploy.spec)
                case Scale() as scale if known:
                    spec = known.spec.changed(replicas=scale.replicas)
                    self._desire(record.key, scale.name, scale.tenant, known, spec)
                case Undeploy() if known:
                    del self.deployed[record.key]
                    self._bus.publish(DEPLOYMENTS_DESIRED, record.key, None)

    def _desire(self, key: str, name: str, tenant: str, known: DesiredDeployment | None, spec: Any) -> None:
        version = known.version + 1 if known else 1
        failure = self.failed.get(key)
        self.deployed[key] = DesiredDeployment(
            tenant=tenant,
            name=name,
            version=version,
            spec=spec,
            replicas=known.replicas if known and not failure else [],
            failures=[failure] if failure else [],
            problem=f"failed on {failure.node}: {failure.reason}" if failure else "",
        )
        self._bus.publish(DEPLOYMENTS_DESIRED, key, self.deployed[key])


class Registry:
    """Publishes what is staged, moves aliases, deletes; answers every command. `refuse` makes it reject."""

    def __init__(self, bus: Bus, store: ObjectStore) -> None:
        self._bus = bus
        self._store = store
        self.published: dict[str, ArtifactVersionState] = {}
        self.aliases: dict[str, ArtifactAliasesState] = {}
        self.refuse: str | None = None
        self.handled: list[Message] = []
        self._may_answer = threading.Event()
        self._may_answer.set()
        bus.subscribe(REGISTRY_COMMANDS, "registry", self._on_commands)

    def put(
        self,
        name: str,
        kind: ArtifactKind,
        files: dict[str, bytes],
        *,
        metadata: dict[str, Any] | None = None,
        parents: Sequence[str] = (),
        tenant: str = "default",
        publication_id: str = "",
    ) -> ArtifactPin:
        """A version, as if it had been published."""
        entries = []
        for path, data in files.items():
            sha = hashlib.sha256(data).hexdigest()
            self._store.put_bytes(blob_key(sha), data)
            entries.append(ManifestFile(path=path, size_bytes=len(data), sha256=sha))
        manifest = Manifest(files=entries, metadata=metadata or {})
        version = 1 + sum(state.name == name for state in self.published.values())
        state = ArtifactVersionState(
            tenant=tenant,
            name=name,
            version=version,
            kind=kind,
            manifest_key=manifest_key(tenant, name, version),
            manifest=manifest,
            publication_id=publication_id or f"{name}-{version}",
            parents=list(parents),
            created_at=datetime.now(UTC),
        )
        self.published[state.publication_id] = state
        self._store.put_bytes(state.manifest_key, manifest.model_dump_json().encode())
        self._bus.publish(REGISTRY_STATE, version_key(tenant, name, version), state)
        self._point(tenant, name, "latest", version)
        return state.pin

    def _point(self, tenant: str, name: str, alias: str, version: int | None) -> None:
        key = artifact_key(tenant, name)
        known = self.aliases.get(key)
        aliases = {**(known.aliases if known else {}), alias: version}
        kept = {word: number for word, number in aliases.items() if number is not None}
        revision = known.revision + 1 if known else 1
        self.aliases[key] = ArtifactAliasesState(tenant=tenant, name=name, aliases=kept, revision=revision)
        self._bus.publish(REGISTRY_STATE, key, self.aliases[key])

    @contextmanager
    def held(self) -> Iterator[None]:
        """It takes no command within."""
        self._may_answer.clear()
        try:
            yield
        finally:
            self._may_answer.set()

    def _on_commands(self, records: Sequence[Record]) -> None:
        self._may_answer.wait(30)
        for record in records:
            command = record.message
            assert command is not None
            self.handled.append(command)
            if self.refuse:
                publication_id = getattr(command, "publication_id", None)
                answer: Message = CommandRejected(
                    command_id=command.id, publication_id=publication_id, reason=self.refuse
                )
            else:
                self._do(command)
                answer = CommandDone(command_id=command.id)
            self._bus.publish(REGISTRY_EVENTS, record.key, answer)

    def _do(self, command: Message) -> None:
        match command:
            case PublishArtifact() if command.publication_id not in self.published:
                staged = read_manifest(self._store, staged_manifest_key(command.staged_prefix))
                files = {
                    file.path: self._store.get_bytes(staged_file_key(command.staged_prefix, file.path))
                    for file in staged.files
                }
                self.put(
                    command.name,
                    command.kind,
                    files,
                    metadata=staged.metadata,
                    tenant=command.tenant,
                    publication_id=command.publication_id,
                )
            case SetAlias():
                self._point(command.tenant, command.name, command.alias, command.version)
            case DeleteArtifact():
                for publication_id, state in list(self.published.items()):
                    if state.name == command.name and command.version in (None, state.version):
                        del self.published[publication_id]
                        key = version_key(state.tenant, state.name, state.version)
                        self._bus.publish(REGISTRY_STATE, key, None)


class GatewayWorld:
    """What outlives a gateway: the ground that all stand on, and the other services."""

    def __init__(self, home: Path, ground: Ground | None = None, **settings: Any) -> None:
        self.ground: Ground = ground or MemoryGround(home)
        if "db_url" not in settings:
            settings["db_url"] = self.ground.new_database("gateway")
        self.settings = Settings(home=home, api_key=KEY, **self.ground.store_settings, **settings)
        self.store = self.ground.store()
        self.bus = self.ground.bus()
        self.scheduler = Scheduler(self.bus)
        self.registry = Registry(self.bus, self.store)

    @contextmanager
    def gateway(self, *, ready: bool = True) -> Iterator[Running]:
        """One gateway, ready unless something that it needs is away. Several may run at once."""
        app = create_app(
            self.settings,
            self.ground.bus(),
            self.store,
            MemoryRequests(),
            MemoryReplyHub().replies(),
            open_database(self.settings.effective_db_url("gateway")),
        )
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=3)
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
            thread.start()
            eventually(lambda: server.started, what="the gateway's start")
            running = Running(app, f"http://127.0.0.1:{listening.getsockname()[1]}")
            try:
                if ready:
                    running.wait_until_ready()
                yield running
            finally:
                running.close()
                server.should_exit = True
                thread.join(20)

    def close(self) -> None:
        self.bus.close()


class Running:
    """A gateway that answers, and the clients to ask it with."""

    def __init__(self, app: Any, url: str) -> None:
        self.app = app
        self.url = url
        headers = {"Authorization": f"Bearer {KEY}"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=20)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=20)

    def wait_until_ready(self) -> None:
        eventually(lambda: self.http.get("/readyz").status_code == 200, what="a gateway that is ready")

    def submit(self, **job: Any) -> str:
        answer = self.http.post("/v1/jobs", json={"type": "probe", **job})
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def upload(self, data: bytes = b'{"prompt": "a", "completion": "b"}\n', name: str = "data.jsonl") -> str:
        file = self.openai.files.create(file=(name, data), purpose="fine-tune")
        assert file.status == "processed"
        return file.id

    def close(self) -> None:
        self.http.close()
        self.openai.close()
