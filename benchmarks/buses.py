"""The durable buses as the benchmarks meet them: their servers, started for the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.bus import prepare
from tests.kafka_server import mortal_kafka
from tests.servers import valkey

BUSES = ("valkey", "kafka")


@contextmanager
def bus_url(name: str) -> Iterator[str]:
    """The address of a server of that kind, with the topics of the vocabulary."""
    if name == "valkey":
        with valkey(durable=True) as server:
            yield server.bus_url
    else:
        with mortal_kafka() as broker:
            prepare(broker.url)
            yield broker.url
