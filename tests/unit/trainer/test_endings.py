"""How a run ended, as a sentence for a person."""

from __future__ import annotations

import errno

import pytest

from services.trainer import endings
from services.trainer.execution import failure_of
from shared.contracts.jobs import FailureReason
from shared.store.port import CorruptArtifact, InvalidKey, ObjectNotFound, StoreFull, StoreUnavailable


def test_a_silent_exit_names_the_code_and_the_last_words() -> None:
    ended = endings.of_exit(3, out_of_memory=False, tail=["loading", "assertion failed", ""])
    assert ended.retryable
    assert "exit code 3" in ended.failure.message
    assert "assertion failed" in ended.failure.message
    assert ended.failure.log_tail == ["loading", "assertion failed", ""]


def test_a_signal_has_its_name() -> None:
    assert "signal 11 (SIGSEGV)" in endings.of_exit(-11, out_of_memory=False, tail=[]).failure.message


def test_a_kill_for_want_of_memory_is_the_users_to_mend_and_any_other_is_not() -> None:
    killed = endings.of_exit(-9, out_of_memory=True, tail=[])
    assert (killed.failure.reason, killed.retryable) == (FailureReason.out_of_memory, False)
    assert killed.failure.hint
    assert endings.of_exit(-9, out_of_memory=False, tail=[]).failure.reason is FailureReason.crashed
    assert endings.of_exit(-11, out_of_memory=True, tail=[]).failure.reason is FailureReason.crashed


@pytest.mark.parametrize(
    ("error", "reason", "retryable"),
    [
        (ObjectNotFound("no manifest"), FailureReason.input_missing, False),
        (CorruptArtifact("hash differs"), FailureReason.crashed, True),
        (StoreUnavailable("nobody answers"), FailureReason.lost, True),
        (StoreFull("no room"), FailureReason.disk_full, False),
        (OSError(errno.ENOSPC, "No space left on device"), FailureReason.disk_full, False),
        (InvalidKey("a link"), FailureReason.crashed, False),
        (ValueError("no name"), FailureReason.crashed, True),
    ],
)
def test_every_trouble_with_bytes_has_its_reason(error: Exception, reason: FailureReason, retryable: bool) -> None:
    ended = endings.of_transfer(error, "Pulling the inputs", [])
    assert (ended.failure.reason, ended.retryable) == (reason, retryable)
    assert ended.failure.message.startswith("Pulling the inputs failed")


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "reason", "retryable"),
    [
        (MemoryError(), FailureReason.out_of_memory, False),
        (OutOfMemoryError("CUDA out of memory"), FailureReason.out_of_memory, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), FailureReason.out_of_memory, False),
        (OSError(errno.ENOSPC, "No space left on device"), FailureReason.disk_full, False),
        (ZeroDivisionError("division by zero"), FailureReason.crashed, True),
    ],
)
def test_what_a_recipe_did_not_foresee_has_its_reason(error: Exception, reason: FailureReason, retryable: bool) -> None:
    failed = failure_of(error)
    assert (failed.reason, failed.retryable) == (reason, retryable)
