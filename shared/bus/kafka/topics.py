"""The topics of the vocabulary on Kafka: how long each is kept, and how it is compacted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from kafka.errors import KafkaError

from shared.bus.port import BusRefuses, BusUnavailable, IncompatibleBus
from shared.contracts.topics import TOPICS, Topic
from shared.kafka.address import Address
from shared.kafka.clients import Refused
from shared.kafka.topics import Made, TopicSpec, WrongTopics, make_topics
from shared.kafka.trouble import trouble

MAX_MESSAGE_BYTES = 4 * 2**20
"""Far more than a message may have: larger bodies go by claim check."""
TOMBSTONES_KEPT = timedelta(days=1)
"""A follower that was away for longer reads its table anew."""
COMPACT_EVERY = timedelta(hours=1)


def create_topics(url: str, topics: Sequence[Topic] = TOPICS) -> Made:
    """Make the topics, and the DLQ of each, where they are not there yet.

    Raises IncompatibleBus, BusRefuses, BusUnavailable.
    """
    try:
        return make_topics(url, [spec(each) for topic in topics for each in (topic, topic.dlq)])
    except WrongTopics as error:
        raise IncompatibleBus(str(error)) from error
    except Refused as error:
        raise BusRefuses(str(error)) from error
    except KafkaError as error:
        raise BusUnavailable(
            f"the topics could not be made on kafka://{Address.parse(url)}: {trouble(url, error)}"
        ) from error


def group_id(topic: Topic, group: str) -> str:
    """The group's name on Kafka: one a topic, since members of a group wait for each other when one comes or goes."""
    return f"{group}:{topic.name}"


def cleanup(topic: Topic) -> str:
    """Kafka's `cleanup.policy` of the topic."""
    if not topic.compacted:
        return "delete"
    return "compact" if topic.retention is None else "compact,delete"


def misshapen(topic: Topic, found: str, wanted: str) -> IncompatibleBus:
    """The error for a topic that has another shape on the server."""
    return IncompatibleBus(
        f"topic {topic.name} has {found} on this bus instead of {wanted}: "
        "run the version that made it, or delete it if nothing in it is needed and run `llmos admin init`"
    )


def spec(topic: Topic) -> TopicSpec:
    """The topic as it should be on the server. The server's clock says how old a record is."""
    configs = {
        "retention.ms": str(_ms(topic.retention) if topic.retention else -1),
        "segment.ms": str(_ms(_segment(topic))),
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(MAX_MESSAGE_BYTES),
    }
    if topic.compacted:
        configs |= {"delete.retention.ms": str(_ms(TOMBSTONES_KEPT)), "min.cleanable.dirty.ratio": "0.2"}
    return TopicSpec(topic.name, topic.partitions, cleanup(topic), configs)


def _segment(topic: Topic) -> timedelta:
    """The server cleans whole segments, and never the one that it writes to: shorter ones are cleaned sooner."""
    longest = COMPACT_EVERY if topic.compacted else timedelta(days=1)
    return min(longest, max(topic.retention or longest, timedelta(minutes=1)))


def _ms(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)
