"""One consumer per group: another process of the same group waits until the first one's connection is gone."""

from __future__ import annotations

import logging
import threading

import redis

from shared.bus.valkey import layout
from shared.contracts.topics import Topic

log = logging.getLogger("llmos.bus")

LOOK_EVERY_S = 0.5


def take_over(server: redis.Redis, topic: Topic, group: str, stopping: threading.Event) -> bool:
    """Make this connection the group's reader, when no other is connected. False when stopped before that.

    The server itself knows who is connected, so a killed owner is followed at once and no clock is trusted.
    """
    key = layout.owner(topic, group)
    mine = f"{server.info('server')['run_id']}:{server.client_id()}"
    waited = False
    while not stopping.is_set():
        with server.pipeline() as pipe:
            pipe.watch(key)  # type: ignore[no-untyped-call]
            theirs = layout.text(pipe.get(key))
            if theirs in {"", mine} or not _connected(server, theirs):
                pipe.multi()
                pipe.set(key, mine)
                try:
                    pipe.execute()
                    return True
                except redis.WatchError:
                    continue
        if not waited:
            log.info("%s: another process reads for group %s; this one stands by", topic.name, group)
            waited = True
        stopping.wait(LOOK_EVERY_S)
    return False


def _connected(server: redis.Redis, owner: str) -> bool:
    run_id, _, connection = owner.rpartition(":")
    return run_id == server.info("server")["run_id"] and bool(server.client_list(client_id=[connection]))
