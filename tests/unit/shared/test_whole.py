"""An owner says that its table is whole when it has seen it so, and takes that back when it is not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from shared.bus.memory import MemoryBus
from shared.bus.port import Record
from shared.bus.whole import RENEWED_AFTER, Whole
from shared.contracts.topics import JOBS_STATE
from shared.contracts.whole import WHOLE, TableWhole
from tests.waiting import eventually

AT = datetime(2030, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Table:
    """A topic with its owner's word on it."""

    def __init__(self) -> None:
        self.bus = MemoryBus()
        self.whole = Whole(JOBS_STATE)
        self.said: TableWhole | None = None
        self.words = 0
        self.bus.follow(JOBS_STATE, self._on)

    def _on(self, record: Record) -> None:
        self.words += self.whole.saw(record)
        if record.key == WHOLE:
            self.said = record.message if isinstance(record.message, TableWhole) else None

    def compared(self, wanted: str, shown: str, now: datetime, words: int) -> TableWhole | None:
        """What is said after this comparison, the so many words of which were seen."""
        self.whole.compared(self.bus, wanted, shown, now)
        eventually(lambda: self.words == words)
        return self.said


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table()
    yield table
    table.bus.close()


def test_a_table_is_whole_once_it_showed_what_there_was_one_look_ago(table: Table) -> None:
    assert table.compared("ab", "a", AT, words=0) is None
    said = table.compared("abc", "ab", AT + MINUTE, words=1)  # c has come since, and may be on its way
    assert said
    assert said.as_of == AT


def test_a_table_that_lacks_what_it_should_show_is_not_called_whole(table: Table) -> None:
    table.compared("ab", "", AT, words=0)
    assert table.compared("ab", "a", AT + MINUTE, words=0) is None


def test_what_was_deleted_since_is_not_missed(table: Table) -> None:
    table.compared("ab", "ab", AT, words=0)
    assert table.compared("a", "a", AT + MINUTE, words=1)


def test_the_word_is_taken_back_when_keys_are_lost_and_said_again_when_they_are_there(table: Table) -> None:
    table.compared("ab", "ab", AT, words=0)
    assert table.compared("ab", "ab", AT + MINUTE, words=1)
    assert table.compared("ab", "b", AT + 2 * MINUTE, words=2) is None
    assert table.compared("ab", "ab", AT + 3 * MINUTE, words=3)


def test_the_word_is_renewed_once_a_day_and_no_oftener(table: Table) -> None:
    table.compared("a", "a", AT, words=0)
    table.compared("a", "a", AT + MINUTE, words=1)
    table.compared("a", "a", AT + 2 * MINUTE, words=1)
    later = AT + MINUTE + RENEWED_AFTER
    said = table.compared("a", "a", later, words=2)
    assert said
    assert said.as_of == AT + 2 * MINUTE
