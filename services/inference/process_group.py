"""Who dies with whom. A replica is a process group of its own and never outlives the agent that started it."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """The kernel kills this process when its parent dies, however it dies. Ends at once if it is dead already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        end_own_group()


def engine_children_die_with_us() -> None:
    """The same for every process that this one forks from now on: an engine's own processes."""
    os.register_at_fork(after_in_child=lambda: die_with_parent(os.getppid()))


def end_own_group() -> None:
    """Kill this process and all that it started. Does not return."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def kill_group(group: int) -> None:
    """Kill every process of the group; nothing happens where none is left."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
