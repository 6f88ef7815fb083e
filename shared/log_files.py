"""The logs of child processes on disk, bounded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LIMIT_BYTES = 32 << 20


def rotate(log: Path, limit_bytes: int = LIMIT_BYTES) -> int:
    """Empty a log that has grown too long, and keep one old copy. Returns how long it is now. Raises OSError.

    A process may be writing to it, if it opened the log for appending: it goes on at the new end, and only what it says
    in the instant between copy and cut is lost. On a full disk the old lines are lost instead of everything else.
    """
    size_bytes = log.stat().st_size if log.exists() else 0
    if size_bytes <= limit_bytes:
        return size_bytes
    old = log.with_suffix(".log.1")
    try:
        shutil.copyfile(log, old)
    except OSError:
        old.unlink(missing_ok=True)
    os.truncate(log, 0)
    return 0


def forget_old(logs: Iterable[Path], kept: int, max_age_s: float, now: float) -> None:
    """Delete those that were last written to longer ago than that, and all but the newest `kept`."""
    written: dict[Path, float] = {}
    for log in logs:
        with suppress(FileNotFoundError):
            written[log] = log.stat().st_mtime
    newest_first = sorted(written, key=lambda log: written[log], reverse=True)
    for number, log in enumerate(newest_first):
        if number >= kept or now - written[log] > max_age_s:
            log.unlink(missing_ok=True)
