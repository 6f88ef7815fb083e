"""What a recipe is given and what it gives back. A recipe runs in the child process and knows no queue and no store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from shared.contracts.artifacts import ArtifactKind
from shared.contracts.jobs import FailureReason, JobSpec


class RecipeError(Exception):
    """The job cannot go on, for a reason that the user can mend. It is not retried.

    `message` is one sentence that names what is wrong (with file and line for data); `hint` says what to try.
    """

    def __init__(self, reason: FailureReason, message: str, hint: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.hint = hint
        self.param = param


class PeersLost(Exception):
    """The other ranks did not come, or broke off. The attempt is lost; the message says what was noticed."""


class Reporter(Protocol):
    """How a running recipe tells where it stands. Never blocks for long, never raises."""

    def progress(
        self,
        step: int,
        total_steps: int | None = None,
        tokens: int = 0,
        eta_s: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """`tokens`: trained on since the job's start, over all attempts."""

    def checkpoint(self, step: int, folder: Path, metrics: Mapping[str, float] | None = None) -> None:
        """`folder` is whole and will not change: it is uploaded, and is the resume point from then on.

        The recipe may delete it only after the next `checkpoint` call has returned: the upload of the one before is
        awaited there.
        """

    def await_upload(self) -> None:
        """Returns once the last checkpoint is dealt with."""

    def log(self, line: str) -> None:
        """A line for the job's log (stdout and stderr go there as well)."""


@dataclass(frozen=True)
class Gang:
    """A seat among the ranks that do a job together, and where they meet: all at `host:port`.

    Rank 0 listens there, on `listener`, a file descriptor of its own. The ranks of a node see all devices that the job
    has there: each takes that of its `local_rank`.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    node_rank: int
    host: str
    port: int
    rendezvous: str
    """Of this attempt alone: who comes from another one meets nobody."""
    timeout_s: float
    """How long a rank waits for the others."""
    backend: str = "auto"
    """How gradients are exchanged: gloo or nccl; auto: nccl between accelerators, else gloo."""
    listener: int | None = None


@dataclass(frozen=True)
class RecipeContext:
    """One run of one attempt."""

    spec: JobSpec
    inputs: Mapping[str, Path]
    """Each input of the spec as a local folder with the version's files, verified."""
    workdir: Path
    """Empty at the start, the run's own, deleted afterwards."""
    resume_from: Path | None
    """The folder of the newest good checkpoint, as this recipe saved it."""
    report: Reporter
    stopping: Callable[[], bool]
    """True once a pause or cancel was asked for: save a checkpoint, report it, and return early by raising Stopped."""
    allow_local_models: bool = True
    allow_hub: bool = True
    attempt: int = 1
    """Which attempt of the job this is, from 1."""
    gang: Gang | None = None
    """None where one process does it all."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone makes the outputs (the others return none)."""
        return self.gang is None or self.gang.rank == 0


class Stopped(Exception):
    """Raised by a recipe that stopped because `stopping()` said so."""


@dataclass(frozen=True)
class MadeOutput:
    """A folder that becomes a version of an artifact."""

    name: str
    kind: ArtifactKind
    folder: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    """base_model, task, params, metrics, licence, context_length …"""
    parents: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    """Final figures of the job: `train_loss_first`, `train_loss`, `eval_loss`, `tokens_per_second` …"""


class RecipeRun(Protocol):
    def __call__(self, context: RecipeContext) -> list[MadeOutput]: ...
