"""How a compacted topic's owner keeps the bookmark on it (`TableBookmark`)."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from shared.bus.port import Bus
from shared.contracts.bookmarks import BOOKMARK, TableBookmark
from shared.contracts.topics import Topic


class Bookmarks:
    """Of one topic, by its owner, who follows it and compares it with the truth once a minute."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._complete_since: datetime | None = None
        self._before: tuple[datetime, frozenset[str]] | None = None

    def compared(self, bus: Bus, wanted: Collection[str], shown: Collection[str], now: datetime) -> None:
        """Publish what follows from a comparison. Raises BusError.

        What came since the last one may be on its way still; what there was then and is not shown by now is missing,
        and with it whatever the topic may have lost besides.
        """
        before, self._before = self._before, (now, frozenset(wanted))
        if before is None:
            return
        until, known = before
        if known.intersection(wanted).difference(shown):
            self._complete_since = None
            return
        self._complete_since = self._complete_since or until
        bookmark = TableBookmark(complete_since=self._complete_since, complete_until=until)
        bus.publish(self._topic, BOOKMARK, bookmark).result()
