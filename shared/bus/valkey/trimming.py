"""What a topic no longer needs to keep."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from datetime import timedelta

import redis

from shared.bus.valkey import layout
from shared.bus.valkey.scripts import EXPIRE
from shared.contracts.topics import Topic

log = logging.getLogger("llmos.bus")

EVERY_S = 30.0
CHANGES_KEPT = timedelta(hours=1)
"""How long a follower of a table may be away without reading it all again."""

EntryId = tuple[int, int]


class Trimmer:
    """Trims the topics that are written to, each now and then, on the writer's own thread."""

    def __init__(self, server: redis.Redis) -> None:
        self._server = server
        self._due: dict[str, float] = {}

    def trim_when_due(self, topics: Iterable[Topic]) -> None:
        """Failures are logged: the next time will do."""
        now = time.monotonic()
        for topic in set(topics):
            if self._due.get(topic.name, 0.0) <= now:
                self._due[topic.name] = now + EVERY_S
                try:
                    trim(self._server, topic)
                except redis.RedisError as error:
                    log.warning("%s could not be trimmed, and will be later: %s", topic.name, error)


def trim(server: redis.Redis, topic: Topic) -> None:
    """Let go of what is older than the topic's retention, but of nothing that a group has not acknowledged."""
    kept = CHANGES_KEPT if topic.compacted else topic.retention
    if kept is not None:
        needed = [_lowest_needed(server, topic, group) for group in _groups(server, topic)]
        milliseconds, sequence = min([_before(server, kept), *needed])
        server.xtrim(layout.stream(topic), minid=f"{milliseconds}-{sequence}", approximate=True)
    if topic.compacted and topic.retention is not None:
        _expire(server, topic, _before(server, topic.retention))


def is_expired(topic: Topic, value_id: EntryId, now_ms: int) -> bool:
    """Whether a table's value is older than the topic keeps it."""
    return topic.retention is not None and value_id[0] < now_ms - topic.retention.total_seconds() * 1000


def now_ms(server: redis.Redis) -> int:
    """The server's clock, which also makes the ids."""
    seconds, microseconds = server.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def parse_id(entry_id: bytes) -> EntryId:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)


def _before(server: redis.Redis, age: timedelta) -> EntryId:
    return max(0, now_ms(server) - int(age.total_seconds() * 1000)), 0


def _groups(server: redis.Redis, topic: Topic) -> list[dict[str, bytes]]:
    if not server.exists(layout.stream(topic)):
        return []
    return list(server.xinfo_groups(layout.stream(topic)))


def _lowest_needed(server: redis.Redis, topic: Topic, group: dict[str, bytes]) -> EntryId:
    """The oldest entry that the group has not acknowledged, or the newest that it has."""
    lowest = server.xpending(layout.stream(topic), group["name"])["min"] if group["pending"] else None
    return parse_id(lowest or group["last-delivered-id"])


def _expire(server: redis.Redis, topic: Topic, oldest: EntryId) -> None:
    expire = server.register_script(EXPIRE)
    old = [
        part
        for key, value in server.hscan_iter(layout.table(topic), count=500)
        if parse_id(value.partition(b" ")[0]) < oldest
        for part in (key, value)
    ]
    if old:
        expire(keys=[layout.table(topic)], args=old)
