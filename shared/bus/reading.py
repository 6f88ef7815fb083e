"""A thread that reads from a server for ever: it begins anew after every outage, and stops when closed."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from shared.bus.delivery import Pause, Worker
from shared.bus.port import BusUnavailable, IncompatibleBus
from shared.contracts.topics import Topic
from shared.outage import Outage

log = logging.getLogger("llmos.bus")


class Reader(ABC):
    """A subscription of an adapter: `session`, which begins anew whenever it ends.

    `away` are the errors of the client that say that the server is; `wake` ends a read that would wait for long.
    """

    def __init__(self, name: str, topic: Topic, away: type[Exception], wake: Callable[[], None] = lambda: None) -> None:
        self.topic = topic
        self.stopping = threading.Event()
        self.outage = Outage(log, name)
        self._away = (away, BusUnavailable, OSError)
        self._pause = Pause(self.stopping)
        self._worker = Worker(name, self._run, self.stopping, wake)

    def start(self) -> None:
        self._worker.start()

    def close(self) -> None:
        """Stop after the batch at hand. Returns when no handler runs any more."""
        self._worker.close()

    @abstractmethod
    def session(self) -> None:
        """Read and deliver until `stopping` is set. Raises what `away` says, BusUnavailable, IncompatibleBus."""

    def answered(self) -> None:
        """The server is there, and reading it works."""
        self.outage.ended()
        self._pause.reset()

    def _run(self) -> None:
        while not self.stopping.is_set():
            try:
                self.session()
                self._pause.reset()
            except IncompatibleBus as error:
                log.error("%s", error)
                self._pause.wait()
            except self._away as error:
                self.outage.began(error)
                self._pause.wait()
            except Exception:
                log.exception("%s: reading failed, and begins anew", self.topic.name)
                self._pause.wait()
