"""The word of a compacted topic's owner that the topic shows everything (`TableWhole`): said, renewed, taken back."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from shared.bus.port import Bus, Record
from shared.contracts.topics import Topic
from shared.contracts.whole import WHOLE, TableWhole

RENEWED_AFTER = timedelta(days=1)
"""What is younger than the word, and is deleted while a reader is away, that reader learns of from the next one."""


class Whole:
    """Of one topic, kept by its owner, who follows the topic and compares it with the truth again and again."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._said: datetime | None = None
        self._before: tuple[datetime, frozenset[str]] | None = None

    def saw(self, record: Record) -> bool:
        """Whether the record is the word itself, said or taken back."""
        if record.key != WHOLE:
            return False
        self._said = record.message.as_of if isinstance(record.message, TableWhole) else None
        return True

    def compared(self, bus: Bus, wanted: Collection[str], shown: Collection[str], now: datetime) -> None:
        """Say what follows from a comparison. Raises BusError.

        What came since the last one may be on its way still; what there was then and is not shown by now is missing.
        """
        before, self._before = self._before, (now, frozenset(wanted))
        if before is None:
            return
        as_of, known = before
        if known.intersection(wanted).difference(shown):
            if self._said is not None:
                bus.publish(self._topic, WHOLE, None).result()
        elif self._said is None or now - self._said > RENEWED_AFTER:
            bus.publish(self._topic, WHOLE, TableWhole(as_of=as_of)).result()
