"""Listening to one child until it is gone: its reports, its output, its end, and the clock that kills it."""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections.abc import Callable

import msgspec

from services.trainer import protocol
from services.trainer.log_feed import LineSplitter
from services.trainer.spawn import Child

TICK_S = 0.1
READ_BYTES = 1 << 16
DRAIN_S = 2.0
"""How long the pipes of an ended child are read on, should something outside its group hold them open."""


class Supervision:
    """`until_gone` runs on one thread; `stop` may be called from any."""

    def __init__(
        self,
        child: Child,
        hear: Callable[[protocol.Report], None],
        read: Callable[[list[str]], None],
        tick: Callable[[], None],
    ) -> None:
        self._child = child
        self._hear = hear
        self._read = read
        self._tick = tick
        self._selector = selectors.DefaultSelector()
        self._splitter = LineSplitter()
        self._half_report = b""
        self._status: int | None = None
        self._guard = threading.Lock()
        self._kill_at_s: float | None = None

    def stop(self, grace_s: float) -> None:
        """SIGTERM now, SIGKILL to the group after `grace_s`; a shorter grace replaces a longer one."""
        kill_at_s = time.monotonic() + grace_s
        with self._guard:
            first = self._kill_at_s is None
            self._kill_at_s = min(kill_at_s, self._kill_at_s or kill_at_s)
        if first:
            self._child.ask_to_stop()

    def until_gone(self) -> int:
        """The child's exit status, once it is gone and all it wrote is read. Its group is dead by then."""
        readers = {
            self._child.reports: self._on_reports,
            self._child.output: self._on_output,
            self._child.exited: self._on_exit,
        }
        for fd, reader in readers.items():
            self._selector.register(fd, selectors.EVENT_READ, reader)
        drained_by_s = float("inf")
        with self._selector:
            while self._selector.get_map() and time.monotonic() < drained_by_s:
                for key, _ in self._selector.select(TICK_S):
                    key.data()
                if self._status is not None:
                    drained_by_s = min(drained_by_s, time.monotonic() + DRAIN_S)
                self._kill_if_due()
                self._tick()
        self._read(self._splitter.end())
        assert self._status is not None
        return self._status

    def _on_exit(self) -> None:
        self._selector.unregister(self._child.exited)
        self._status = self._child.reap()

    def _on_output(self) -> None:
        if data := self._data(self._child.output):
            self._read(self._splitter.feed(data))

    def _on_reports(self) -> None:
        *lines, self._half_report = (self._half_report + self._data(self._child.reports)).split(b"\n")
        for line in lines:
            self._hear(self._report(line))

    def _report(self, line: bytes) -> protocol.Report:
        """A child that writes what is no report cannot be trusted to go on."""
        try:
            return protocol.decode_report(line)
        except msgspec.DecodeError as error:
            self._child.kill()
            return protocol.Failed("crashed", f"The training process wrote a report that cannot be read: {error}", True)

    def _data(self, fd: int) -> bytes:
        data = os.read(fd, READ_BYTES)
        if not data:
            self._selector.unregister(fd)
        return data

    def _kill_if_due(self) -> None:
        with self._guard:
            due = self._kill_at_s is not None and time.monotonic() >= self._kill_at_s
        if due:
            self._child.kill()
