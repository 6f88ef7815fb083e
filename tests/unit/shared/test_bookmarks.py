"""An owner bookmarks its table for as long as it has seen it complete, and begins anew after a gap."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from shared.bus.bookmarks import Bookmarks
from shared.bus.memory import MemoryBus
from shared.bus.port import BusUnavailable
from shared.contracts.bookmarks import TableBookmark
from shared.contracts.message import decode
from shared.contracts.topics import JOBS_STATE

AT = datetime(2030, 1, 1, tzinfo=UTC)


class Table:
    """A topic with its owner's bookmark on it; a comparison a minute."""

    def __init__(self) -> None:
        self.bus = MemoryBus()
        self.bookmarks = Bookmarks(JOBS_STATE)
        self.minute = 0

    def compared(self, wanted: str, shown: str) -> tuple[int, int] | None:
        """From and to which minute the table is said to be complete after this comparison, where it says so at all."""
        before = len(self.published())
        self.minute += 1
        self.bookmarks.compared(self.bus, wanted, shown, AT + self.minute * timedelta(minutes=1))
        new = self.published()[before:]
        return (_minute(new[0].complete_since), _minute(new[0].complete_until)) if new else None

    def published(self) -> list[TableBookmark]:
        messages = [decode(record.raw) for record in self.bus.server.logs[JOBS_STATE.name].records if record.raw]
        return [message for message in messages if isinstance(message, TableBookmark)]


def _minute(at: datetime) -> int:
    return round((at - AT).total_seconds() / 60)


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table()
    yield table
    table.bus.close()


def test_a_table_is_complete_once_it_showed_what_there_was_one_look_ago(table: Table) -> None:
    assert table.compared("ab", "a") is None
    assert table.compared("abc", "ab") == (1, 1)  # c has come since, and may be on its way
    assert table.compared("abc", "abc") == (1, 2)


def test_a_table_that_lacks_what_it_should_show_is_not_called_complete(table: Table) -> None:
    table.compared("ab", "")
    assert table.compared("ab", "a") is None


def test_what_was_deleted_since_is_not_missed(table: Table) -> None:
    table.compared("ab", "ab")
    assert table.compared("a", "a") == (1, 1)


def test_a_table_that_lost_keys_is_complete_anew_and_not_still(table: Table) -> None:
    table.compared("ab", "ab")
    assert table.compared("ab", "ab") == (1, 1)
    assert table.compared("ab", "b") is None
    assert table.compared("ab", "ab") == (3, 3)


def test_an_owner_that_could_not_say_it_goes_on_where_it_was(table: Table) -> None:
    table.compared("a", "a")
    table.compared("a", "a")
    table.bus.away = True
    with pytest.raises(BusUnavailable):
        table.compared("a", "a")
    table.bus.away = False
    assert table.compared("a", "a") == (1, 3)
