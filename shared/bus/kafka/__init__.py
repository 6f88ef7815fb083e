"""The bus on Apache Kafka.

`llmos admin init` makes the topics. A group's members share a topic's partitions; the handlers of a subscription run on
threads of their own, one at a time, while another thread keeps the place in the group.
"""

from shared.bus.kafka.bus import KafkaBus

__all__ = ["KafkaBus"]
