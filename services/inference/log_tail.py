"""The last lines of a replica's log, which its agent and the replica itself both look at for what went wrong."""

from __future__ import annotations

import os
from pathlib import Path

TAIL_BYTES = 1 << 16


def log_tail(log: Path, log_from: int) -> list[str]:
    """The last lines behind the byte `log_from`; none where somebody has made room."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(log_from if log_from <= end else 0, end - TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()
