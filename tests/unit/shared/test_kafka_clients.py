"""How the adapters reach Kafka."""

from __future__ import annotations

import inspect

from kafka.record import default_records
from kafka.record._crc32c import crc

from shared.kafka import clients


def test_checksums_are_those_of_kafka_and_not_made_in_python() -> None:
    assert clients
    checksum = default_records.calc_crc32c
    view = memoryview(bytearray(b"what a record batch holds"))
    assert checksum(view) == crc(view)
    assert inspect.signature(checksum).parameters["_crc32c"].default is not crc
