"""What a person reads of a server that does not answer: which one, and why, in a sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kafka.errors import KafkaError, NodeNotReadyError, NotLeaderForPartitionError

from shared.bus.kafka import KafkaBus
from shared.bus.port import BusUnavailable
from shared.kafka.trouble import trouble
from shared.requests.kafka.topic import check_topic
from shared.requests.port import RequestsUnavailable
from shared.store.port import StoreUnavailable
from shared.store.s3 import S3Store

KAFKA = "kafka://127.0.0.1:1"


@pytest.mark.parametrize(
    ("ask", "error"), [(KafkaBus(KAFKA, "t").ping, BusUnavailable), (lambda: check_topic(KAFKA), RequestsUnavailable)]
)
def test_a_kafka_that_is_away_is_named(ask: Callable[[], None], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^no Kafka broker answers at 127.0.0.1:1 \(111 ECONNREFUSED\)$"):
        ask()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (NodeNotReadyError("No node_id provided"), "no Kafka broker answers at kafka:9092"),
        (
            NotLeaderForPartitionError(f"list_partition_offsets timed out: {list(range(300))}"),
            "the Kafka at kafka:9092 does not serve us just now (NotLeaderForPartitionError)",
        ),
    ],
)
def test_the_librarys_own_words_are_left_out(error: Exception, says: str) -> None:
    assert trouble("kafka://kafka:9092", error) == says
    assert len(trouble("kafka://kafka:9092", KafkaError("x" * 1000))) == 200


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [("127.0.0.1:1", "it takes no connection"), ("no-such-host.invalid:9000", "its name is not known")],
)
def test_a_store_that_is_away_is_named(endpoint: str, why: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        S3Store(endpoint, "bucket", "key", "secret-key").ping()
    assert str(caught.value) == f"the S3 store at {endpoint} does not answer about its bucket: {why}"
