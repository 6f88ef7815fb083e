"""The logs of child processes on disk, bounded."""

from __future__ import annotations

from pathlib import Path

LIMIT_BYTES = 32 << 20


def rotate(log: Path, limit_bytes: int = LIMIT_BYTES) -> int:
    """Keep one old log where this one has grown too long. Returns where a new start's lines begin. Raises OSError."""
    size_bytes = log.stat().st_size if log.exists() else 0
    if size_bytes <= limit_bytes:
        return size_bytes
    log.replace(log.with_suffix(".log.1"))
    return 0
