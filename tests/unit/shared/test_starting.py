"""What a start waits for, and what ends it."""

from __future__ import annotations

import logging
import threading

import pytest

from shared import starting
from shared.readiness import Readiness
from shared.settings import SettingsError
from shared.starting import Need, Uninitialized, Watch
from tests.waiting import eventually


class Away(Exception):
    pass


class Lacking(Away, Uninitialized):
    pass


class Server:
    """Raises what it is told to; `now_s` is the clock."""

    def __init__(self, trouble: Exception | None) -> None:
        self.trouble = trouble
        self.now_s = 0.0

    def check(self) -> None:
        if self.trouble:
            raise self.trouble

    def need(self) -> Need:
        return Need("the server", self.check, (Away,), 60, clock=lambda: self.now_s)


def test_a_server_that_does_not_answer_is_waited_for_for_ever_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = Server(Away("it does not answer\nand more"))
    need = server.need()
    for server.now_s in (0, 1e3, 1e6):
        assert not need.there()
    server.trouble = None
    assert need.there()
    assert caplog.messages == ["waits for the server: it does not answer", "the server is there"]


def test_what_init_makes_is_waited_for_until_its_time_is_up() -> None:
    server = Server(Away("away"))
    need = server.need()
    assert not need.there()
    server.trouble = Lacking("it has no topics: make them")
    for server.now_s in (1000, 1059):
        assert not need.there()
    server.now_s = 1060
    with pytest.raises(SettingsError, match=r"no topics: make them \(waited 60 s: LLMOS_INIT_TIMEOUT_S"):
        need.there()


def test_the_time_begins_anew_when_the_server_was_away_between() -> None:
    server = Server(Lacking("no topics"))
    need = server.need()
    assert not need.there()
    server.trouble, server.now_s = Away("away"), 59
    assert not need.there()
    server.trouble, server.now_s = Lacking("no topics"), 61
    assert not need.there()


def test_a_watch_tells_of_a_refusal_though_another_server_is_away() -> None:
    refused: list[SettingsError] = []
    watch = Watch([Server(Away("away")).need(), Server(SettingsError("wrong password")).need()], refused.append)
    watch.start()
    eventually(lambda: [str(error) for error in refused] == ["wrong password"])
    watch.stop()


def test_a_watch_goes_on_after_an_error_that_nobody_foresaw_and_tells_it_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "RETRY_S", 0.01)
    refused, looks = list[SettingsError](), list[int]()

    def check() -> None:
        looks.append(1)
        raise ValueError("unforeseen") if len(looks) < 4 else SettingsError("wrong password")

    watch = Watch([Need("the server", check, (Away,), 60)], refused.append)
    watch.start()
    eventually(lambda: [str(error) for error in refused] == ["wrong password"])
    watch.stop()
    assert caplog.text.count("ValueError: unforeseen") == 1


def test_a_look_that_hangs_holds_up_no_other_and_its_reason_is_kept_for_the_next() -> None:
    answering = threading.Event()
    looked = threading.Event()

    def slow() -> None:
        looked.wait(30)
        answering.wait(30)
        raise Away("nobody is at home")

    def away() -> None:
        raise Away("away")

    readiness = Readiness({"slow": slow, "away": away, "there": lambda: None}, look_s=0.05)
    assert readiness.missing() == {"slow": "no answer within 0.05 s", "away": "away"}
    looked.set()
    answering.set()
    eventually(lambda: readiness.missing()["slow"] == "nobody is at home")
    answering.clear()
    assert readiness.missing()["slow"] == "nobody is at home"
    answering.set()


def test_what_was_there_a_moment_ago_is_not_missing_for_one_slow_answer() -> None:
    answering = threading.Event()
    answering.set()
    readiness = Readiness({"bus": lambda: _answered(answering)}, look_s=0.05)
    eventually(lambda: readiness.missing() == {})
    answering.clear()
    assert readiness.missing() == {}
    answering.set()


def test_what_has_not_answered_for_long_is_missing() -> None:
    answering = threading.Event()
    answering.set()
    readiness = Readiness({"bus": lambda: _answered(answering)}, look_s=0.05, missing_after_s=0.2)
    eventually(lambda: readiness.missing() == {})
    answering.clear()
    eventually(lambda: "no answer within" in readiness.missing().get("bus", ""))
    answering.set()
    eventually(lambda: readiness.missing() == {})


def _answered(answering: threading.Event) -> None:
    answering.wait(30)


def test_waiting_ends_when_it_is_there_or_when_told_to_stop() -> None:
    server = Server(Away("away"))
    pauses = iter([False, True])
    assert not server.need().wait(lambda _: next(pauses))

    def comes_back(_: float) -> bool:
        server.trouble = None
        return False

    assert server.need().wait(comes_back)
