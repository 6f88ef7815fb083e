"""Which process is which, and who dies with whom. Imports next to nothing: it is there before heavy libraries are."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

PR_SET_PDEATHSIG = 1
KERNEL_BOOT = Path("/proc/sys/kernel/random/boot_id")

_libc = ctypes.CDLL(None, use_errno=True)  # loaded before any fork: a child may not take the loader's locks


def birth_of(pid: int) -> str | None:
    """What tells a process from every other that ever had or will have its pid; None where none lives by that pid.

    The kernel's boot and the clock tick of the start: no change of the wall clock moves it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else f"{KERNEL_BOOT.read_text().strip()}:{fields[18]}"


def die_with_parent(parent_pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """The kernel sends this process `number` when the thread that started it ends, however it does. Ends this process
    and its group at once if the parent is dead already. Raises OSError."""
    if _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        end_own_group()


def children_die_with_us() -> None:
    """The same for every process that this one forks from now on."""
    os.register_at_fork(after_in_child=lambda: die_with_parent(os.getppid()))


def end_own_group() -> None:
    """Kill this process and all that it started. Does not return."""
    os.killpg(0, signal.SIGKILL)


def kill_group(group: int) -> None:
    """Kill every process of the group; nothing happens where none is left."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
