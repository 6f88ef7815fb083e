"""Jobs and their attempts: commands, events, states, and the wish that workers converge to.

A *job* has *attempts*; an attempt runs as one *run* per rank. The `run_id` fences everything a run says: the scheduler
accepts one per attempt and rank, and whatever another says changes nothing.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import Field

from shared.contracts.artifacts import ArtifactKind, ArtifactName, ArtifactPin
from shared.contracts.message import Message, Value


class JobStatus(StrEnum):
    queued = "queued"
    starting = "starting"
    running = "running"
    publishing = "publishing"
    pausing = "pausing"
    paused = "paused"
    cancelling = "cancelling"
    backoff = "backoff"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({JobStatus.succeeded, JobStatus.failed, JobStatus.cancelled})


class Wish(StrEnum):
    """What the scheduler wants of an attempt: workers converge to it."""

    run = "run"
    pause = "pause"
    cancel = "cancel"
    none = "none"


class Resources(Value):
    """What one node of the job needs, for all its ranks together. `devices=None`: one accelerator for each of its ranks
    where the nodes have any, else none."""

    cpus: float = Field(default=1, gt=0)
    memory_bytes: int = Field(default=0, ge=0)
    devices: int | None = Field(default=None, ge=0)
    nodes: int = Field(default=1, ge=1)
    ranks_per_node: int | None = Field(default=None, ge=1, le=64)
    """Processes on each node. With devices there is one for each of them; without, one, or as many as this says."""

    def devices_where_there_are_any(self) -> int:
        """How many devices of its own the job takes on a node."""
        return self.devices if self.devices is not None else self.ranks_per_node or 1

    def ranks_with(self, devices: int) -> int:
        """How many ranks a node runs that gives the job so many devices: one for each, as torchrun has it."""
        return devices or self.ranks_per_node or 1


class JobSpec(Value):
    """What to do, with everything resolved: inputs are immutable versions, params have passed their recipe's model."""

    type: str
    name: str = ""
    """For people."""
    inputs: dict[str, ArtifactPin] = Field(default_factory=dict)
    params: dict[str, Any] = Field(default_factory=dict)
    resources: Resources = Resources()
    output: ArtifactName = "output"
    """The artifact that the job publishes a version of."""
    output_kind: ArtifactKind = ArtifactKind.model
    priority: int = Field(default=0, ge=-100, le=100)
    """Higher starts first."""
    labels: dict[str, str] = Field(default_factory=dict)


class CheckpointRef(Value):
    """A checkpoint that lies whole in the store: `key` is the folder with `manifest.json` and `files/`."""

    step: int
    key: str
    attempt: int
    run_id: str
    at: datetime
    metrics: dict[str, float] = Field(default_factory=dict)


class FailureReason(StrEnum):
    """Why an attempt or a job failed. The first five are the user's to mend and are not retried."""

    bad_data = "bad_data"
    bad_params = "bad_params"
    input_missing = "input_missing"
    out_of_memory = "out_of_memory"
    unsafe_artifact = "unsafe_artifact"
    crashed = "crashed"
    disk_full = "disk_full"
    lost = "lost"
    publish_rejected = "publish_rejected"
    undecodable = "undecodable"


class Failure(Value):
    """What went wrong, for a person: one sentence, what to try, and the log's last lines."""

    reason: FailureReason
    message: str
    hint: str = ""
    log_tail: list[str] = Field(default_factory=list)
    param: str | None = None
    """The field of the request that is to blame, if one is."""


class Output(Value):
    """Something an attempt made, staged whole."""

    name: ArtifactName
    kind: ArtifactKind
    staged_prefix: str
    parents: list[str] = Field(default_factory=list)


# Commands, gateway → scheduler. Key: the job.


class SubmitJob(Message):
    job_id: str
    spec: JobSpec
    retry_of: str | None = None


class CancelJob(Message):
    job_id: str


class PauseJob(Message):
    job_id: str


class ResumeJob(Message):
    job_id: str


# Events, trainer → scheduler and gateway. Key: the job.


class RunMessage(Message):
    """Whatever a run says carries its whole fence."""

    job_id: str
    attempt: int
    rank: int = 0
    run_id: str


class AttemptStarted(RunMessage):
    schema_version: ClassVar[int] = 2

    node: str
    pid: int
    meeting: str = ""
    """Where the ranks of a gang meet, as `host:port`: rank 0 listens there and says so."""


class CheckpointSaved(RunMessage):
    checkpoint: CheckpointRef


class AttemptSucceeded(RunMessage):
    outputs: list[Output]
    metrics: dict[str, float] = Field(default_factory=dict)


class AttemptFailed(RunMessage):
    failure: Failure
    retryable: bool


class AttemptStopped(RunMessage):
    """The run ended because the wish was pause, cancel or none."""

    wish: Wish


class JobTransitioned(Message):
    """The scheduler's own event: a job went from one status to another."""

    job_id: str
    before: JobStatus
    after: JobStatus
    attempt: int
    reason: str = ""


# Logs, trainer → gateway. Key: the job.


class Progress(RunMessage):
    """Where training stands. `tokens` counts since the job's start, over all attempts."""

    step: int
    total_steps: int | None = None
    tokens: int = 0
    percent: float | None = None
    eta_s: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class LogLines(RunMessage):
    lines: list[str]


# States.


class Place(Value):
    """One rank's seat: a node and the rank's own devices on it (indices for CUDA_VISIBLE_DEVICES). The ranks of a node
    follow each other."""

    node: str
    rank: int = 0
    devices: list[int] = Field(default_factory=list)


class DesiredAttempt(Message):
    """The current attempt of a job, on `attempts.desired` (key: the job). A tombstone means: nothing to run any more.

    `accepted` maps a rank to the one run_id that counts; a run of this attempt and rank with another id must stop.
    """

    schema_version: ClassVar[int] = 2

    job_id: str
    attempt: int
    version: int
    """Grows with every change, so that a late copy is known as late."""
    spec: JobSpec
    places: list[Place]
    wish: Wish
    accepted: dict[int, str] = Field(default_factory=dict)
    resume_from: CheckpointRef | None = None
    meeting: str = ""
    """Where the ranks of a gang meet, once rank 0 was accepted. They begin when all ranks were."""


class AttemptState(Value):
    """One attempt, as readers see it."""

    attempt: int
    places: list[Place] = Field(default_factory=list)
    runs: dict[int, str] = Field(default_factory=dict)
    """Rank → the accepted run_id."""
    dispatched_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: str = ""
    """`succeeded`, `failed`, `lost`, `stopped`, or empty while it lasts."""
    failure: Failure | None = None


class JobState(Message):
    """The whole truth about a job, on `jobs.state` (key: the job). `version` only grows."""

    job_id: str
    version: int
    spec: JobSpec
    status: JobStatus
    reason: str = ""
    """One sentence for a person: why it waits, what it does, how it ended."""
    placeable: bool = True
    """False while it waits for what no known node has, even an empty one: `reason` says what."""
    attempt: int = 0
    attempts: list[AttemptState] = Field(default_factory=list)
    checkpoints: list[CheckpointRef] = Field(default_factory=list)
    outputs: list[ArtifactPin] = Field(default_factory=list)
    metrics: dict[str, float] = Field(default_factory=dict)
    failure: Failure | None = None
    retry_of: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class JobPurged(Message):
    """The job was forgotten after its retention; its tombstone follows on `jobs.state`."""

    job_id: str
