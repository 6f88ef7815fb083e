"""The one topic of all requests."""

from __future__ import annotations

import zlib

from kafka.errors import KafkaError

from shared.kafka.address import Address
from shared.kafka.clients import Refused, admin
from shared.kafka.topics import Made, TopicSpec, WrongTopics, check, existing, make_topics
from shared.kafka.trouble import trouble
from shared.requests.port import RequestsUnavailable, RequestsUninitialized
from shared.settings import SettingsError

NAME = "inference.requests"
PARTITIONS = 32
"""Replicas whose ids meet in a partition also read, and drop, what is the other's."""
MAX_REQUEST_BYTES = 32 * 2**20
"""Far above the default of LLMOS_MAX_BODY_BYTES."""

TOPIC = TopicSpec(
    NAME,
    PARTITIONS,
    "delete",
    {
        "retention.ms": "300000",
        "retention.bytes": str(256 * 2**20),
        "segment.ms": "60000",
        "segment.bytes": str(64 * 2**20),
        "max.message.bytes": str(MAX_REQUEST_BYTES),
    },
)


def create_topic(url: str) -> Made:
    """Make the topic where it is not there yet. Raises RequestsUnavailable, SettingsError."""
    try:
        return make_topics(url, [TOPIC], durable=False)
    except (Refused, WrongTopics) as error:
        raise SettingsError(f"LLMOS_REQUESTS_URL: {error}") from None
    except KafkaError as error:
        raise RequestsUnavailable(
            f"the topic of requests could not be made on kafka://{Address.parse(url)}: {trouble(url, error)}"
        ) from error


def check_topic(url: str) -> None:
    """Raises RequestsUnavailable, RequestsUninitialized where there is no topic yet, SettingsError."""
    try:
        with admin(url, "requests:look") as client:
            if NAME not in existing(client, [NAME]):
                raise RequestsUninitialized(f"Kafka has no topic {NAME} yet: `llmos admin init` makes it")
            check(client, [TOPIC])
    except (Refused, WrongTopics) as error:
        raise SettingsError(f"LLMOS_REQUESTS_URL: {error}") from None
    except KafkaError as error:
        raise RequestsUnavailable(trouble(url, error)) from error


def partition_of(replica: str) -> int:
    """Where the replica's requests go, the same in every process."""
    return zlib.crc32(replica.encode()) % PARTITIONS
