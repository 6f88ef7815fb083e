"""The replica's end of the socket to its agent: wishes in, reports out, and the agent's death."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

import msgspec
import structlog

from services.inference.control import MAX_MESSAGE_BYTES, Report, Wishes, decode_wishes, encode
from shared.processes import end_own_group

log = structlog.get_logger(__name__)


class Line:
    """Reads on a thread, so that the agent's death is seen while an engine's start blocks everything else."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._wishes = Wishes()
        self._on_wishes: Callable[[Wishes], None] | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._read, name="agent", daemon=True).start()

    def report(self, report: Report) -> None:
        """Tell the agent; it reads all the time, so this does not wait."""
        try:
            self._socket.send(encode(report))
        except (BrokenPipeError, ConnectionResetError):
            end_own_group()

    def listen(self, on_wishes: Callable[[Wishes], None]) -> None:
        """Call `on_wishes` in the running event loop: now with the latest, then with every change."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._on_wishes = lambda wishes: _ignore(loop.call_soon_threadsafe(on_wishes, wishes))
            latest = self._wishes
        on_wishes(latest)

    def _read(self) -> None:
        while raw := self._receive():
            try:
                wishes = decode_wishes(raw)
            except msgspec.DecodeError as error:  # said by an agent of another version
                log.warning("wishes_not_understood", reason=str(error))
                continue
            with self._lock:
                self._wishes = wishes
                if self._on_wishes is not None:
                    self._on_wishes(self._wishes)
        end_own_group()  # the agent is dead, and nobody would stop what runs here

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(MAX_MESSAGE_BYTES)
        except ConnectionResetError:
            return b""


def _ignore(_: object) -> None:
    return None
