"""Reports survive a bus that is away: in order, and log lines give way first."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future

import pytest

from services.trainer import outbox
from services.trainer.heartbeat import Heartbeat
from services.trainer.outbox import Contact, Outbox
from shared.bus.memory import MemoryBus
from shared.bus.port import Position
from shared.contracts.jobs import AttemptStopped, LogLines, Progress, RunMessage, Wish
from shared.contracts.message import Message, decode
from shared.contracts.nodes import Capacity
from shared.contracts.topics import JOBS_EVENTS, JOBS_LOGS, Topic
from tests.waiting import eventually


def lines(*said: str) -> LogLines:
    return LogLines(job_id="j", attempt=1, run_id="r", lines=list(said))


def progress(step: int) -> Progress:
    return Progress(job_id="j", attempt=1, run_id="r", step=step)


def stopped() -> AttemptStopped:
    return AttemptStopped(job_id="j", attempt=1, run_id="r", wish=Wish.pause)


class Recording(MemoryBus):
    """Also keeps the order over all topics."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def publish(self, topic: Topic, key: str, message: Message | None) -> Future[Position]:
        future = super().publish(topic, key, message)
        if future.exception() is None:
            self.order.append(type(message).__name__)
        return future


def logged(bus: MemoryBus) -> list[RunMessage]:
    messages = [decode(record.raw) for record in bus.server.logs[JOBS_LOGS.name].records if record.raw]
    return [message for message in messages if isinstance(message, RunMessage)]


def test_reports_keep_their_order_over_an_absence() -> None:
    bus = Recording()
    bus.away = True
    durable = threading.Event()
    box = Outbox(bus, Contact(), "j")
    box.put(lines("one"))
    box.put(progress(1))
    box.put(stopped(), durable.set)
    box.close()
    assert not durable.is_set()
    bus.away = False
    assert durable.wait(10)
    assert bus.order == ["LogLines", "Progress", "AttemptStopped"]
    assert len(bus.server.logs[JOBS_EVENTS.name].records) == 1


def test_log_lines_give_way_first_and_are_counted() -> None:
    bus = Recording()
    bus.away = True
    box = Outbox(bus, Contact(), "j")
    box.put(progress(0))
    for number in range(outbox.MAX_WAITING_LOGS + 50):
        box.put(lines(f"line {number}", "more"))
    box.put(stopped())
    box.close()
    bus.away = False
    eventually(lambda: bus.order[-1:] == ["AttemptStopped"], 20)
    said = [message for message in logged(bus) if isinstance(message, LogLines)]
    confessed = int(said[0].lines[0].split()[1])
    assert "dropped while the bus was away" in said[0].lines[0]
    kept = sum(len(message.lines) for message in said) - 1
    assert confessed + kept == 2 * (outbox.MAX_WAITING_LOGS + 50)
    assert said[-1].lines == [f"line {outbox.MAX_WAITING_LOGS + 49}", "more"]
    assert bus.order.count("Progress") == 1


def test_an_abandoned_outbox_ends_while_the_bus_is_away() -> None:
    bus = Recording()
    bus.away = True
    box = Outbox(bus, Contact(), "gone")
    box.put(stopped())
    box.abandon()
    eventually(lambda: not any(thread.name == "outbox-gone" for thread in threading.enumerate()))


def test_contact_is_what_the_clock_says() -> None:
    now = [10.0]
    contact = Contact(lambda: now[0])
    now[0] = 15.0
    assert contact.silence_s() == 5.0
    contact.made()
    assert contact.silence_s() == 0.0


class Trying(MemoryBus):
    """Counts what it is asked to publish."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0

    def publish(self, topic: Topic, key: str, message: Message | None) -> Future[Position]:
        self.tries += 1
        return super().publish(topic, key, message)


def test_an_absence_is_logged_when_it_begins_and_when_it_ends(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE_S", 0.1)
    bus = Trying()
    bus.away = True
    durable = threading.Event()
    box = Outbox(bus, Contact(), "j")
    box.put(stopped(), durable.set)
    box.close()
    eventually(lambda: bus.tries >= 4)
    bus.away = False
    assert durable.wait(10)
    assert caplog.messages == [
        "the outbox of run j waits, and is tried again until it works: the bus is away",
        "the outbox of run j works again",
    ]


def test_heartbeats_that_do_not_get_through_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bus = Trying()
    bus.away = True
    capacity = Capacity(cpus=1, memory_bytes=2**30)
    heartbeat = Heartbeat(bus, Contact(), "here", "boot", capacity, list, every_s=0.01)
    heartbeat.start()
    eventually(lambda: bus.tries >= 4)
    bus.away = False
    eventually(lambda: "the heartbeat works again" in caplog.messages)
    heartbeat.say_farewell()
    assert caplog.messages == [
        "the heartbeat waits, and is tried again until it works: the bus is away",
        "the heartbeat works again",
    ]
