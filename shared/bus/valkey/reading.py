"""Reading from the server on a connection of its own, which ends at once when closed."""

from __future__ import annotations

import logging
from abc import abstractmethod

import redis

from shared import valkey
from shared.bus import reading
from shared.bus.valkey.shape import check_shape
from shared.contracts.topics import Topic

log = logging.getLogger("llmos.bus")


class Reader(reading.Reader):
    """`read`, which begins anew on another connection after each outage."""

    def __init__(self, url: str, name: str, topic: Topic) -> None:
        super().__init__(name, topic, away=redis.RedisError, wake=self._unblock)
        self._url = url
        self._name = name
        self._control = valkey.client(url, socket_timeout=1.0)
        self._connection_id: int | None = None

    def close(self) -> None:
        super().close()
        self._control.close()

    @abstractmethod
    def read(self, server: redis.Redis) -> None:
        """Read and deliver until `stopping` is set. Raises RedisError when the server goes away."""

    def session(self) -> None:
        with valkey.client(self._url, single_connection_client=True, client_name=self._name) as server:
            self._connection_id = server.client_id()
            check_shape(server, self.topic)
            self.answered()
            self.read(server)

    def _unblock(self) -> None:
        if self._connection_id is not None:
            try:
                self._control.client_unblock(self._connection_id)
            except redis.RedisError as error:
                log.debug("the server cannot end a read, which ends by itself: %s", error)
