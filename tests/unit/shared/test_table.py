"""What a follower is shown of a table, whatever the adapter."""

from __future__ import annotations

import threading

import pytest

from shared.bus.delivery import RawRecord
from shared.bus.port import IncompatibleBus, Position, Record
from shared.bus.table import Table
from shared.contracts.jobs import CancelJob
from shared.contracts.topics import JOBS_COMMANDS, JOBS_STATE

RAW = CancelJob(job_id="a").encode()


class Follower:
    """A table, and what was shown of it: a key, or `-key` when it is gone."""

    def __init__(self, patience_s: float) -> None:
        self.shown: list[str] = []
        self.caught_up = 0
        self.table = Table(JOBS_STATE, self._on, self._on_caught_up, patience_s, threading.Event())

    def read(self, *keys: str, wiped: bool = False) -> None:
        """As an adapter does that reads all there is."""
        self.table.begin_anew()
        for offset, key in enumerate(keys):
            self.table.show(RawRecord(key, Position(0, offset), RAW))
        self.table.all_shown(Position(0, len(keys)), wiped=wiped)

    def _on(self, record: Record) -> None:
        self.shown.append(record.key if record.message else f"-{record.key}")

    def _on_caught_up(self) -> None:
        self.caught_up += 1


def test_what_came_before_is_not_shown_again() -> None:
    follower = Follower(0)
    follower.read("a", "b")
    follower.table.show(RawRecord("a", Position(0, 0), RAW))
    follower.table.show(RawRecord("b", Position(0, 2), None))
    assert follower.shown == ["a", "b", "-b"]
    assert ("a" in follower.table, "b" in follower.table) == (True, False)


def test_a_table_is_caught_up_once() -> None:
    follower = Follower(0)
    follower.read("a")
    follower.read("a")
    assert (follower.shown, follower.caught_up) == (["a", "a"], 1)


def test_a_key_that_a_read_no_longer_finds_is_gone_at_once() -> None:
    follower = Follower(600)
    follower.read("a", "b")
    follower.read("b")
    assert follower.shown == ["a", "b", "b", "-a"]


def test_keys_that_a_wipe_lost_are_waited_for_even_when_the_table_is_read_again_meanwhile() -> None:
    follower = Follower(600)
    follower.read("a", "b")
    follower.read("b", wiped=True)
    follower.read("b")
    follower.table.give_up_lost_keys(Position(0, 9))
    assert "-a" not in follower.shown


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(IncompatibleBus, match=r"jobs\.commands is not compacted: subscribe"):
        Table(JOBS_COMMANDS, lambda _: None, None, 0, threading.Event())
