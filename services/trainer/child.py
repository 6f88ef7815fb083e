"""The child process of one run: it begins when told, runs the recipe, and dies with its trainer.

`python -m services.trainer.child JOB_TYPE TRAINER_PID CONTROL_FD REPORTS_FD [LISTENER_FD]`. The top of this module
imports next to nothing, so that the process can be stopped and killed properly before the heavy libraries are loaded.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import BinaryIO, NoReturn

from services.trainer import protocol
from shared.processes import die_with_parent, end_own_group


def main() -> NoReturn:
    job_type, trainer_pid, control_fd, reports_fd, *listener_fd = sys.argv[1], *map(int, sys.argv[2:])
    stop_asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop_asked.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the trainer's to handle
    die_with_parent(trainer_pid)
    for fd in (control_fd, reports_fd, *listener_fd):
        os.set_inheritable(fd, False)
    inbox = Inbox(os.fdopen(control_fd, "rb"))
    reports = os.fdopen(reports_fd, "wb", buffering=0)

    from services.trainer.execution import execute

    last_word = execute(job_type, inbox, reports, stop_asked, *listener_fd)
    sys.stdout.flush()
    sys.stderr.flush()
    reports.write(protocol.encode(last_word))
    os._exit(0 if isinstance(last_word, protocol.Done | protocol.Halted) else 1)  # no library may hold up the end


class Inbox:
    """What the trainer says, read on a thread of its own. When the trainer is gone, so is this process group."""

    def __init__(self, control: BinaryIO) -> None:
        self._control = control
        self._news = threading.Condition()
        self._begin: protocol.Begin | None = None
        self._uploaded = -1
        threading.Thread(target=self._read, name="control", daemon=True).start()

    def begin(self) -> protocol.Begin:
        """Waits for the word to begin."""
        with self._news:
            self._news.wait_for(lambda: self._begin is not None)
            assert self._begin is not None
            return self._begin

    def wait_uploaded(self, step: int) -> None:
        """Waits until the checkpoint of `step` is dealt with."""
        with self._news:
            self._news.wait_for(lambda: self._uploaded >= step)

    def _read(self) -> None:
        try:
            for line in self._control:
                self._take(protocol.decode_order(line))
        finally:
            end_own_group()

    def _take(self, order: protocol.Order) -> None:
        with self._news:
            match order:
                case protocol.Begin():
                    self._begin = order
                case protocol.Uploaded(step=step):
                    self._uploaded = step
            self._news.notify_all()


if __name__ == "__main__":
    main()
