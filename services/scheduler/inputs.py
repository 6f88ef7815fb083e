"""What the scheduler tells its own jobs: decided by the tick, put through the same table as every message."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.contracts.jobs import Place


@dataclass(frozen=True)
class Dispatch:
    """A new attempt at these places, one per rank."""

    places: list[Place] = field(default_factory=list)


@dataclass(frozen=True)
class AttemptLost:
    """The attempt's worker is gone, or never took it up. `why` ends a sentence that begins "Attempt 3 was lost: "."""

    attempt: int
    why: str


@dataclass(frozen=True)
class StopOverdue:
    """The worker was asked to pause or cancel the attempt, and did not answer for too long."""

    attempt: int


@dataclass(frozen=True)
class BackoffOver:
    """The pause before the next attempt has passed."""


@dataclass(frozen=True)
class AnswerOverdue:
    """The registry has not answered for every output, or asked to be asked again."""


@dataclass(frozen=True)
class Waits:
    """Why the job is still in the queue, for a person, and whether it could start if its turn came."""

    reason: str
    placeable: bool = True


Internal = Dispatch | AttemptLost | StopOverdue | BackoffOver | AnswerOverdue | Waits
