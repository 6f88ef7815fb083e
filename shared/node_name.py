"""A node's name, held by one process of a role on this machine."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


class NodeTaken(Exception):
    """Another process of that role and name runs on this machine."""


def take_node(home: Path, node: str, role: str) -> IO[str]:
    """Hold the name for as long as the returned file is open; the kernel lets go of it with the process.

    Raises NodeTaken.
    """
    home.mkdir(parents=True, exist_ok=True)
    file = (home / f"{node}.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise NodeTaken(
            f"{role} for the node {node!r} runs here already (process {holder}); "
            "stop it, or set LLMOS_NODE to another name"
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
