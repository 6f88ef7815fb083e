"""A thread that reads from the server for ever: it comes back after every outage and ends at once when closed."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod

import redis

from shared import valkey
from shared.bus.delivery import Pause, Worker
from shared.bus.port import IncompatibleBus
from shared.bus.valkey.shape import check_shape
from shared.contracts.topics import Topic

log = logging.getLogger("llmos.bus")


class Reader(ABC):
    """One connection of its own, and `read`, which begins anew after each outage."""

    def __init__(self, url: str, name: str, topic: Topic) -> None:
        self.topic = topic
        self._url = url
        self._name = name
        self._control = valkey.client(url, socket_timeout=1.0)
        self._outage = valkey.Outage(log, name)
        self._connection_id: int | None = None
        self._worker = Worker(name, self._run, wake=self._unblock)
        self.stopping = self._worker.stopping

    def start(self) -> None:
        self._worker.start()

    def close(self) -> None:
        """Stop after the batch at hand. Returns when no handler runs any more."""
        self._worker.close()
        self._control.close()

    @abstractmethod
    def read(self, server: redis.Redis) -> None:
        """Read and deliver until `stopping` is set. Raises RedisError when the server goes away."""

    def answered(self) -> None:
        """The server is there."""
        self._outage.ended()

    def away(self, error: Exception) -> None:
        """The server is not there."""
        self._outage.began(error)

    def _run(self, stopping: threading.Event) -> None:
        pause = Pause(stopping)
        while not stopping.is_set():
            try:
                with valkey.client(self._url, single_connection_client=True, client_name=self._name) as server:
                    self._connection_id = server.client_id()
                    check_shape(server, self.topic)
                    pause.reset()
                    self.answered()
                    self.read(server)
            except IncompatibleBus as error:
                log.error("%s", error)
                pause.wait()
            except (redis.RedisError, OSError) as error:
                self.away(error)
                pause.wait()

    def _unblock(self) -> None:
        if self._connection_id is not None:
            try:
                self._control.client_unblock(self._connection_id)
            except redis.RedisError as error:
                log.debug("the server cannot end a read, which ends by itself: %s", error)
