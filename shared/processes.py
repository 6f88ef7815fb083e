"""Which process is which, and who dies with whom. Imports next to nothing: it is there before heavy libraries are."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PR_SET_PDEATHSIG = 1
KERNEL_BOOT = Path("/proc/sys/kernel/random/boot_id")

KILL_TIMEOUT_S = 10.0
LOOK_EVERY_S = 0.02

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


class Life(NamedTuple):
    """One process, as it can be written down: no later one with its pid is taken for it."""

    pid: int
    birth: str

    @property
    def goes_on(self) -> bool:
        return birth_of(self.pid) == self.birth

    def send(self, number: signal.Signals) -> None:
        """Nothing happens where it has ended, whoever has its pid now."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.goes_on:
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return
        finally:
            os.close(handle)


def living() -> list[Life]:
    """Every process of this machine that can be seen."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [Life(pid, birth) for pid in pids if (birth := birth_of(pid))]


def group_of(leader: Life) -> list[Life]:
    """Who lives of the group that it led, although it may be dead itself; nobody where its pid is another's now, or
    where that group is our own."""
    if leader.pid == os.getpgrp() or birth_of(leader.pid) not in (None, leader.birth):
        return []
    return [life for life in living() if _group(life.pid) == leader.pid]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def await_end(lives: Iterable[Life], timeout_s: float) -> list[Life]:
    """Returns when all have ended, or those that have not by then."""
    left, deadline = list(lives), time.monotonic() + timeout_s
    while (left := [life for life in left if life.goes_on]) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
    return left


def kill_all(lives: Iterable[Life]) -> list[Life]:
    """SIGKILL, and wait. Returns those that even this has not ended within ten seconds: they hang in the kernel."""
    doomed = list(lives)
    for life in doomed:
        life.send(signal.SIGKILL)
    return await_end(doomed, KILL_TIMEOUT_S)


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
