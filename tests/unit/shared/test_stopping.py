"""A process that is told to stop hears it, whenever that comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from shared.stopping import all_at_once
from tests.waiting import eventually

WAITS = """
import threading
from shared.stopping import Stop
stop = Stop()
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("made", flush=True)
{meanwhile}
stop.wait_until_asked()
print("stops", flush=True)
"""


def process(meanwhile: str) -> subprocess.Popen[str]:
    code = WAITS.format(meanwhile=meanwhile)
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_signal_that_comes_before_anyone_waits_is_not_missed() -> None:
    with process("input()") as told:
        assert told.stdout
        assert told.stdout.readline() == "made\n"
        told.send_signal(signal.SIGTERM)
        rest, _ = told.communicate("go on\n", timeout=30)
        assert rest == "stops\n"
        assert told.returncode == 0


def test_a_process_that_was_frozen_for_longer_than_it_waits_goes_on() -> None:
    with process('while not stop.wait(0.01): print("waits", flush=True)') as told:
        assert told.stdout
        for _ in range(10):
            while told.stdout.readline() != "waits\n":
                assert told.poll() is None
            told.send_signal(signal.SIGSTOP)
            thaws_at_s = time.monotonic() + 0.1
            eventually(lambda thaws_at_s=thaws_at_s: time.monotonic() > thaws_at_s)  # type: ignore[misc]
            told.send_signal(signal.SIGCONT)
        told.send_signal(signal.SIGTERM)
        rest, _ = told.communicate(timeout=30)
        assert told.returncode == 0
        assert rest.endswith("stops\n")


def test_any_thread_may_ask() -> None:
    with process("threading.Thread(target=stop.ask).start()") as told:
        rest, _ = told.communicate(timeout=30)
        assert rest == "made\nstops\n"
        assert told.returncode == 0


def test_what_stops_at_once_waits_for_nobody_and_the_first_error_is_raised_when_all_have() -> None:
    met = threading.Barrier(3, timeout=30)
    raised, stopped = threading.Event(), list[str]()

    def fails() -> None:
        met.wait()
        raised.set()
        raise OSError("first")

    def fails_later() -> None:
        met.wait()
        raised.wait(30)
        stopped.append("later")
        raise RuntimeError("second")

    def stops() -> None:
        met.wait()
        stopped.append("in order")

    with pytest.raises(OSError, match="first"):
        all_at_once([fails_later, fails, stops])
    assert sorted(stopped) == ["in order", "later"]
    all_at_once([])


HANGS = """
import threading
from shared.stopping import all_at_once
began = threading.Event()
hangs = lambda: began.set() or threading.Event().wait()
threading.Thread(target=all_at_once, args=([hangs],), daemon=True).start()
began.wait()
"""


def test_one_that_hangs_does_not_keep_the_process_from_ending() -> None:
    assert subprocess.run([sys.executable, "-c", HANGS], timeout=30, check=False).returncode == 0
