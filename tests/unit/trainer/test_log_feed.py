"""The log's lines: whatever bytes a child prints, readers get text, in order, and not too much of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.log_feed import (
    BATCH_S,
    MAX_BATCH,
    MAX_BATCH_CHARACTERS,
    MAX_LINE,
    MAX_LINES_PER_S,
    TAIL,
    LineSplitter,
    LogFeed,
)


def split(*chunks: bytes) -> list[str]:
    splitter = LineSplitter()
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.end()


@given(st.lists(st.text(st.characters(exclude_characters="\n\r\0", codec="utf-8"), max_size=50)), st.integers(1, 7))
def test_lines_come_out_as_they_went_in_however_the_pipe_cuts_them(lines: list[str], size: int) -> None:
    data = "".join(line + "\n" for line in lines).encode()
    assert split(*(data[start : start + size] for start in range(0, len(data), size))) == lines


def test_a_last_line_needs_no_newline() -> None:
    assert split(b"one\ntw", b"o") == ["one", "two"]


def test_invalid_utf8_is_replaced() -> None:
    assert split(b"a\xffb\0\n") == ["a\ufffdb\ufffd"]


def test_a_progress_bar_counts_as_its_last_state() -> None:
    assert split(b"\r10%\r50%\r100%\ndone\r\n") == ["100%", "done"]


def test_a_long_line_is_cut_and_a_huge_one_costs_no_memory() -> None:
    assert split(b"x" * (MAX_LINE + 10) + b"\n")[0].endswith("(10 more characters cut)")
    splitter = LineSplitter()
    lines = [line for _ in range(100) for line in splitter.feed(b"x" * 10_000)]
    assert [*lines, *splitter.feed(b"\nnext\n")][1:] == ["next"]
    assert len(lines) == 1


def test_an_endless_progress_bar_costs_no_memory() -> None:
    splitter = LineSplitter()
    for percent in range(50_000):
        assert splitter.feed(b"\r%d" % percent) == []
    assert splitter.feed(b"\n") == ["49999"]


def test_lines_wait_for_their_batch_no_longer_than_promised() -> None:
    feed = LogFeed()
    feed.add(["a"], 1.0)
    feed.add(["b"], 1.1)
    assert feed.take(1.1) == []
    assert feed.take(1.0 + BATCH_S) == ["a", "b"]
    assert feed.take(9.0, everything=True) == []


def test_a_full_batch_waits_for_nothing() -> None:
    feed = LogFeed()
    feed.add(["x"] * (MAX_BATCH + 1), 1.0)
    assert len(feed.take(1.0)) == MAX_BATCH
    assert feed.take(1.0) == ["x"]


def test_a_batch_of_long_lines_stays_a_small_message() -> None:
    feed = LogFeed()
    feed.add(["x" * MAX_LINE] * 50, 1.0)
    batches = []
    while batch := feed.take(2.0, everything=True):
        batches.append(batch)
    assert sum(map(len, batches)) == 50
    assert max(sum(map(len, batch)) for batch in batches) <= MAX_BATCH_CHARACTERS
    assert max(map(len, feed.tail())) < MAX_LINE


def test_too_many_lines_are_left_out_and_counted_and_the_last_are_still_known() -> None:
    feed = LogFeed()
    feed.add([str(number) for number in range(MAX_LINES_PER_S + 70)], 1.0)
    lines = []
    while batch := feed.take(2.5, everything=True):
        lines += batch
    assert lines[:MAX_LINES_PER_S] == [str(number) for number in range(MAX_LINES_PER_S)]
    assert lines[MAX_LINES_PER_S:] == [f"… 70 lines left out: more than {MAX_LINES_PER_S} came in a second"]
    assert feed.tail()[-1] == str(MAX_LINES_PER_S + 69)
    assert len(feed.tail()) == TAIL
