"""A process that takes records of a topic and never finishes: made to be killed. Prints the first key it was given."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

from shared import bus
from shared.bus.port import Record
from shared.contracts.topics import Topic


def hang(records: Sequence[Record]) -> None:
    print(records[0].key, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    url, topic, partitions, group = sys.argv[1:]
    bus.connect(url, "victim").subscribe(Topic(topic, None, int(partitions)), group, hang, max_batch=2)
    threading.Event().wait()
