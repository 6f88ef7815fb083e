"""How runs end, as pure decisions: an exit status and what was said become one failure with a sentence."""

from __future__ import annotations

import errno
import signal
from dataclasses import dataclass

from services.trainer import protocol
from services.trainer.execution import DISK_FULL_HINT, OUT_OF_MEMORY_HINT
from shared.contracts.jobs import Failure, FailureReason, Wish
from shared.store.port import CorruptArtifact, ObjectNotFound, StoreError, StoreFull, StoreUnavailable

CRASH_HINT = "The last lines of the log say more."
KILLED_HINT = "If nobody killed it, look whether the machine ran out of memory."

STOPPED_FROM_OUTSIDE = "The training process was told to stop by a signal that the trainer did not send"


@dataclass(frozen=True)
class Ended:
    """A failure, and whether another attempt may mend it."""

    failure: Failure
    retryable: bool


@dataclass(frozen=True)
class StopOrder:
    """Why a run must stop. `wish=None`: the node itself gives the run back, to be taken up again elsewhere."""

    wish: Wish | None
    why: str = ""

    def outranks(self, other: StopOrder | None) -> bool:
        return other is None or _RANK[self.wish] > _RANK[other.wish]

    @property
    def worthless(self) -> bool:
        """Nothing that the run still makes will be used."""
        return self.wish in (Wish.none, Wish.cancel)


_RANK = {None: 0, Wish.run: 0, Wish.pause: 1, Wish.cancel: 2, Wish.none: 3}


def of_words(said: protocol.Failed, tail: list[str]) -> Ended:
    """The recipe said itself what is wrong."""
    reason = FailureReason(said.reason)
    hint = said.hint or (CRASH_HINT if said.retryable else "")
    failure = Failure(reason=reason, message=said.message, hint=hint, log_tail=tail, param=said.param)
    return Ended(failure, said.retryable)


def of_exit(status: int, out_of_memory: bool, tail: list[str]) -> Ended:
    """The child ended without a last word. `out_of_memory`: the kernel killed something meanwhile."""
    if status == -signal.SIGKILL and out_of_memory:
        message = "The kernel killed the training process because the machine ran out of memory"
        failure = Failure(reason=FailureReason.out_of_memory, message=message, hint=OUT_OF_MEMORY_HINT, log_tail=tail)
        return Ended(failure, retryable=False)
    how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with exit code {status}"
    last = next((line for line in reversed(tail) if line.strip()), "")
    message = f"The training process {how} before it was done" + (f"; its last line: {last}" if last else "")
    hint = KILLED_HINT if status == -signal.SIGKILL else CRASH_HINT
    return Ended(Failure(reason=FailureReason.crashed, message=message, hint=hint, log_tail=tail), retryable=True)


def of_transfer(error: Exception, doing: str, tail: list[str]) -> Ended:
    """Inputs could not be pulled, or what was made could not be uploaded."""
    message = f"{doing} failed: {error}"
    match error:
        case ObjectNotFound():
            return _ended(FailureReason.input_missing, message, "Was the artifact deleted? Upload it again.", tail)
        case CorruptArtifact():
            hint = "The bytes were thrown away and are pulled afresh by the next attempt."
            return _ended(FailureReason.crashed, message, hint, tail, retryable=True)
        case StoreUnavailable():
            return _ended(FailureReason.lost, message, "Is the object store running?", tail, retryable=True)
        case StoreFull():
            return _ended(FailureReason.disk_full, message, "Free space in the object store or on this disk.", tail)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return _ended(FailureReason.disk_full, message, DISK_FULL_HINT, tail)
        case StoreError():
            return _ended(FailureReason.crashed, message, "", tail)
        case _:
            return _ended(FailureReason.crashed, message, CRASH_HINT, tail, retryable=True)


def given_back(why: str, tail: list[str]) -> Ended:
    """The node stops: the attempt is lost through no fault of its own and goes on from its newest checkpoint."""
    return _ended(FailureReason.lost, why, "", tail, retryable=True)


def _ended(reason: FailureReason, message: str, hint: str, tail: list[str], retryable: bool = False) -> Ended:
    return Ended(Failure(reason=reason, message=message, hint=hint, log_tail=tail), retryable)


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
