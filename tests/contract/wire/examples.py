"""One realistic instance of everything that crosses a boundary, with fixed ids and times."""

from __future__ import annotations

from datetime import UTC, datetime

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
)
from shared.contracts.bookmarks import TableBookmark
from shared.contracts.deployments import (
    Deploy,
    DeploymentSpec,
    DesiredDeployment,
    Load,
    ReplicaPlace,
    ReplicaState,
    ReplicaStatus,
    Scale,
    Undeploy,
)
from shared.contracts.inference import Cancel, Frame, FrameKind, Request
from shared.contracts.jobs import (
    AttemptFailed,
    AttemptStarted,
    AttemptState,
    AttemptStopped,
    AttemptSucceeded,
    CancelJob,
    CheckpointRef,
    CheckpointSaved,
    DesiredAttempt,
    Failure,
    FailureReason,
    JobPurged,
    JobSpec,
    JobState,
    JobStatus,
    JobTransitioned,
    LogLines,
    Output,
    PauseJob,
    Place,
    Progress,
    Resources,
    ResumeJob,
    SubmitJob,
    Wish,
)
from shared.contracts.message import Message
from shared.contracts.nodes import Capacity, Device, NodeHeartbeat, Role, RunRef

AT = datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)
JOB = "job_5f0c1d"
RUN = "run_9a41"
SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

BASE = ArtifactPin(name="smollm2", version=1, kind=ArtifactKind.model, manifest_key="manifests/acme/smollm2/1.json")
DATA = ArtifactPin(name="faq", version=3, kind=ArtifactKind.dataset, manifest_key="manifests/acme/faq/3.json")
ADAPTER = ArtifactPin(
    name="assistant", version=2, kind=ArtifactKind.adapter, manifest_key="manifests/acme/assistant/2.json"
)
RESOURCES = Resources(cpus=2, memory_bytes=2**33, devices=1, nodes=2)
SPEC = JobSpec(
    type="sft",
    name="nightly",
    inputs={"base": BASE, "data": DATA},
    params={"learning_rate": 2e-4, "epochs": 3, "batch_size": "auto"},
    resources=RESOURCES,
    output="assistant",
    output_kind=ArtifactKind.adapter,
    priority=5,
    labels={"team": "support", "städtisch": "ja"},
)
CHECKPOINT = CheckpointRef(
    step=100, key="staging/job_5f0c1d/1/run_9a41/checkpoints/100", attempt=1, run_id=RUN, at=AT, metrics={"loss": 1.25}
)
FAILURE = Failure(
    reason=FailureReason.bad_data,
    message="faq.jsonl line 17: 'messages' is missing",
    hint="Give every line a list 'messages'.",
    log_tail=["loading faq.jsonl", "17: no 'messages'"],
    param="inputs.data",
)
PLACES = [Place(node="gpu-1", rank=0, devices=[0]), Place(node="gpu-2", rank=1, devices=[3])]
MANIFEST = Manifest(
    files=[ManifestFile(path="adapter/model.safetensors", size_bytes=4096, sha256=SHA)],
    metadata={"base_model": "smollm2@1", "task": "chat", "metrics": {"loss": 0.9}},
)
DEPLOYMENT = DeploymentSpec(
    model=BASE,
    replicas=2,
    adapters=[ADAPTER],
    auto_adapters=False,
    max_loras=8,
    max_lora_rank=32,
    engine_args={"max_model_len": 2048},
    max_queue=64,
    resources=RESOURCES,
)

ENVELOPE = {
    "id": "0f8fad5bd9cb469fa16570867728950e",
    "at": AT,
    "tenant": "acme",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}
FENCE = {"job_id": JOB, "attempt": 1, "rank": 1, "run_id": RUN}

BODIES: dict[type[Message], dict[str, object]] = {
    SubmitJob: {"job_id": JOB, "spec": SPEC, "retry_of": "job_0"},
    CancelJob: {"job_id": JOB},
    PauseJob: {"job_id": JOB},
    ResumeJob: {"job_id": JOB},
    AttemptStarted: {**FENCE, "node": "gpu-2", "pid": 4711, "meeting": "10.0.0.7:40123"},
    CheckpointSaved: {**FENCE, "checkpoint": CHECKPOINT},
    AttemptSucceeded: {
        **FENCE,
        "outputs": [
            Output(
                name="assistant",
                kind=ArtifactKind.adapter,
                staged_prefix="staging/job_5f0c1d/1/run_9a41/outputs/assistant",
                parents=["smollm2@1", "faq@3"],
            )
        ],
        "metrics": {"eval_loss": 0.9},
    },
    AttemptFailed: {**FENCE, "failure": FAILURE, "retryable": False},
    AttemptStopped: {**FENCE, "wish": Wish.pause},
    JobTransitioned: {
        "job_id": JOB,
        "before": JobStatus.running,
        "after": JobStatus.backoff,
        "attempt": 1,
        "reason": "The worker was lost.",
    },
    Progress: {
        **FENCE,
        "step": 50,
        "total_steps": 200,
        "tokens": 102400,
        "percent": 25.0,
        "eta_s": 61.5,
        "metrics": {"loss": 1.5, "learning_rate": 1.9e-4},
    },
    LogLines: {**FENCE, "lines": ["step 50/200", "Grüße – 你好"]},
    DesiredAttempt: {
        "job_id": JOB,
        "attempt": 2,
        "version": 9,
        "spec": SPEC,
        "places": PLACES,
        "wish": Wish.run,
        "accepted": {0: RUN},
        "resume_from": CHECKPOINT,
        "meeting": "10.0.0.7:40123",
    },
    JobState: {
        "job_id": JOB,
        "placeable": True,
        "version": 12,
        "spec": SPEC,
        "status": JobStatus.running,
        "reason": "Attempt 2 runs on gpu-1 and gpu-2.",
        "attempt": 2,
        "attempts": [
            AttemptState(
                attempt=1,
                places=PLACES,
                runs={0: "run_1", 1: RUN},
                dispatched_at=AT,
                started_at=AT,
                ended_at=AT,
                outcome="failed",
                failure=FAILURE,
            ),
            AttemptState(attempt=2, places=PLACES, dispatched_at=AT),
        ],
        "checkpoints": [CHECKPOINT],
        "outputs": [ADAPTER],
        "metrics": {"loss": 1.25},
        "failure": FAILURE,
        "retry_of": "job_0",
        "created_at": AT,
        "started_at": AT,
        "finished_at": None,
    },
    JobPurged: {"job_id": JOB},
    PublishArtifact: {
        "publication_id": "a6e2",
        "name": "assistant",
        "kind": ArtifactKind.adapter,
        "staged_prefix": "staging/job_5f0c1d/1/run_9a41/outputs/assistant",
        "job_id": JOB,
        "parents": ["smollm2@1"],
        "aliases": ["production"],
    },
    SetAlias: {"name": "assistant", "alias": "production", "version": 2},
    DeleteArtifact: {"name": "assistant", "version": 1},
    CommandDone: {"command_id": "c1", "publication_id": "a6e2", "job_id": JOB, "artifact": ADAPTER},
    CommandRejected: {
        "command_id": "c1",
        "publication_id": "a6e2",
        "job_id": JOB,
        "reason": "model.bin is a pickle; only safetensors are taken",
        "retryable": True,
    },
    ArtifactVersionState: {
        "name": "assistant",
        "version": 2,
        "kind": ArtifactKind.adapter,
        "manifest_key": ADAPTER.manifest_key,
        "manifest": MANIFEST,
        "publication_id": "a6e2",
        "job_id": JOB,
        "parents": ["smollm2@1", "faq@3"],
        "created_at": AT,
    },
    ArtifactAliasesState: {"name": "assistant", "aliases": {"latest": 2, "production": 1}, "revision": 4},
    Deploy: {"name": "chat", "spec": DEPLOYMENT},
    Scale: {"name": "chat", "replicas": 3},
    Undeploy: {"name": "chat"},
    DesiredDeployment: {
        "name": "chat",
        "version": 7,
        "spec": DEPLOYMENT,
        "replicas": [ReplicaPlace(replica_id="chat-0", node="gpu-1", devices=[0])],
        "problem": "No node has a free device for the second replica.",
        "failures": [],
    },
    ReplicaStatus: {
        "replica_id": "chat-0",
        "deployment": "chat",
        "node": "gpu-1",
        "state": ReplicaState.ready,
        "percent": 100.0,
        "reason": "",
        "model": "smollm2@1",
        "adapters": ["assistant@2"],
        "failed_adapters": {"assistant@1": "rank 128 is above 32"},
        "load": Load(running=3, waiting=1),
        "max_model_len": 2048,
        "restarts": 1,
        "boot_id": "b7",
        "seq": 42,
        "deployment_version": 0,
    },
    NodeHeartbeat: {
        "node": "gpu-1",
        "role": Role.trainer,
        "boot_id": "b1",
        "capacity": Capacity(
            cpus=16, memory_bytes=2**36, devices=[Device(index=0, kind="cuda", memory_bytes=2**36)], slots=1
        ),
        "runs": [RunRef(job_id=JOB, attempt=2, rank=0, run_id=RUN)],
        "replicas": ["chat-0"],
        "version": "0.1.0",
        "stopping": True,
        "seq": 17,
    },
    TableBookmark: {"complete_since": AT, "complete_until": AT},
}

MESSAGES: list[Message] = [kind.model_validate({**ENVELOPE, **body}) for kind, body in BODIES.items()]

REQUEST = Request(
    id="req_1",
    attempt=2,
    path="/v1/chat/completions",
    body=b'{"model":"smollm2@1","stream":true}',
    reply_to="gw:0c1d",
    headers=[(b"content-type", b"application/json"), (b"x-bytes", b"\xff\x00")],
    timeout_ms=60_000,
    tenant="acme",
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)
CANCEL = Cancel(id="req_1", attempt=2)
FRAMES = [Frame("req_1", 2, seq, kind, bytes([seq, 255]), "chat-0") for seq, kind in enumerate(FrameKind)]
