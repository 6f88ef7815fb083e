"""A topic keeps the shape it was made with."""

from __future__ import annotations

import redis

from shared.bus.port import IncompatibleBus
from shared.bus.valkey import layout
from shared.contracts.topics import Topic


def check_shape(server: redis.Redis, topic: Topic) -> None:
    """Note the topic's shape on the server if it is new there. Raises IncompatibleBus where it has another."""
    if server.hsetnx(layout.TOPICS, topic.name, layout.shape(topic)):
        return
    found = layout.text(server.hget(layout.TOPICS, topic.name))
    if found not in {"", layout.shape(topic)}:
        raise IncompatibleBus(
            f"topic {topic.name} is a {found} on this bus and a {layout.shape(topic)} in this version: "
            "run the version that made it, or start with an empty bus"
        )
