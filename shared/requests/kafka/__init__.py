"""Requests on Kafka: one topic that keeps minutes; a replica reads one partition of it from where it ends, and takes
what is addressed to it. `llmos admin init` makes the topic."""

from shared.requests.kafka.adapter import KafkaRequests

__all__ = ["KafkaRequests"]
